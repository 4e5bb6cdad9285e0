"""How much a command writes to stderr: -q, -v and --debug, before or after the command's name."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import click

from sdexport.commands.output import OneLineFormatter

_OPTIONS = (
    (("-q", "--quiet"), "Print errors only: no progress, no warnings."),
    (("-v", "--verbose"), "Also print what is chosen and found along the way."),
    (("--debug",), "Print a traceback for every error."),
)


def verbosity_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add -q, -v and --debug to a command; they are not arguments of its function."""
    for names, text in reversed(_OPTIONS):
        option = click.option(
            *names, is_flag=True, is_eager=True, expose_value=False, callback=_store, help=text
        )
        command = option(command)
    return command


def is_set(name: str) -> bool:
    """Whether "quiet", "verbose" or "debug" was given to the running command or to its group."""
    context = click.get_current_context(silent=True)
    return context is not None and context.meta.get(f"sdexport.{name}", False)


def set_up_logging() -> None:
    """Write log records to stderr, each message once, from the level that -q and -v select.

    Without them these are warnings, and from the runtime also the choices of `--backend auto`.
    """
    # Pillow's hint at a decompression bomb, from half the size on that it rejects
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    printed = logging.StreamHandler()
    printed.setFormatter(OneLineFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[printed])  # unless there are handlers already
    for handler in logging.getLogger().handlers:
        if not any(isinstance(known, _Once) for known in handler.filters):
            handler.addFilter(_Once())
    levels = {"": logging.WARNING, "sdexport": logging.WARNING, "sdexport.runtime": logging.INFO}
    if is_set("quiet"):
        levels = dict.fromkeys(levels, logging.ERROR)
    elif is_set("verbose"):
        levels |= {"sdexport": logging.INFO}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _store(context: click.Context, option: click.Parameter, value: bool) -> None:
    if not value:
        return
    context.meta[f"sdexport.{option.name}"] = True  # a command's context shares this with its group
    if is_set("quiet") and is_set("verbose"):
        raise click.UsageError("-q and -v exclude each other")
    set_up_logging()


class _Once(logging.Filter):
    """Drops a message that was logged before: several images may give the same warning."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self._seen
        self._seen.add(message)
        return new
