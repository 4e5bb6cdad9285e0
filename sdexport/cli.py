"""The command line: its group, its errors, its logging."""

from __future__ import annotations

import logging
from typing import Any

import click

from sdexport import interrupts
from sdexport.commands import bench, build, demo, export, generate, inspect, verify
from sdexport.runtime.version import __version__


class _Group(click.Group):
    """Turns a user's mistake into one line on stderr and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own, and a reader such as head that has seen enough
        except Exception as error:
            interruption = interrupts.behind(error)
            if interruption is not None:
                raise interruption from None
            if ctx.params.get("debug") or not _is_mistake(error):
                raise
            click.echo(f"error: {_message(error)}", err=True)
            ctx.exit(1)


def _is_mistake(error: Exception) -> bool:
    """Errors with a message for the user; anything else is a bug and keeps its traceback."""
    from sdexport.engines.errors import SDExportError

    return isinstance(error, ValueError | OSError | ImportError | MemoryError | SDExportError)


def _message(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory for this; try a smaller size or fewer pictures"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sdexport")
@click.option("--debug", is_flag=True, help="Show a traceback for every error.")
def main(debug: bool) -> None:
    """A Stable Diffusion checkpoint becomes one folder that paints without PyTorch."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("sdexport.runtime.component_engines").setLevel(
        logging.INFO
    )  # it says what auto takes
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Once())
    interrupts.install()


class _Once(logging.Filter):
    """Says each thing once: a picture after another may give the same warning."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self._said
        self._said.add(message)
        return new


for _command in (
    export.export,
    build.build,
    verify.verify,
    generate.generate,
    inspect.inspect,
    bench.bench,
    demo.demo,
):
    main.add_command(_command)
