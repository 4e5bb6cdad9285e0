"""The command line: the group of commands, how errors are printed, and exit statuses.

Status 0: done. 1: an error, in one line on stderr. 2: wrong usage. 130: Ctrl-C. 143: SIGTERM.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import click

from sdexport import interrupts
from sdexport.commands import (
    bench,
    build,
    cache,
    demo,
    export,
    export_adapter,
    generate,
    inspect,
    preprocess,
    schedulers,
    serve,
    sign,
    triton,
    verify,
)
from sdexport.commands.output import echo, escaped_streams, escaped_usage_errors
from sdexport.commands.verbosity import is_set, set_up_logging, verbosity_options
from sdexport.runtime.version import __version__

_log = logging.getLogger(__name__)
ISSUES = "https://github.com/sdexport/sdexport/issues"


class _Group(click.Group):
    """Prints errors and turns them into exit statuses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which people need them

    def main(self, *arguments: Any, **extra: Any) -> Any:
        with escaped_streams():
            return super().main(*arguments, **extra)

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        with escaped_usage_errors():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with escaped_usage_errors():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click handles these; a pipe breaks when its reader, such as head, ends
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  the last stop
            ctx.exit(_report(error))


def _report(error: BaseException) -> int:
    """Print an error to stderr and return the exit status."""
    status = interrupts.exit_status(error)
    if status is not None:
        return status
    debug = is_set("debug")
    if debug:
        echo(*"".join(traceback.format_exception(error)).rstrip("\n").split("\n"), err=True)
    message, is_bug = _explain(error)
    echo(f"error: {message}", err=True)
    if is_bug:
        how = "report it, with this traceback," if debug else "run again with --debug and report it"
        echo(f"Please {how} at {ISSUES}", err=True)
    return 1


def _explain(error: BaseException) -> tuple[str, bool]:
    """The message of an error on one line, and whether the error is a bug in sdexport."""
    from sdexport.engines.errors import NEEDS_LESS, SDExportError, is_out_of_memory
    from sdexport.engines.messages import one_line

    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}", False
    if isinstance(error, SDExportError | OSError):
        return one_line(error), False
    # PyTorch raises a RuntimeError
    if isinstance(error, MemoryError) or is_out_of_memory(str(error)):
        what = f"out of memory: {one_line(error)}" if str(error) else "out of memory"
        return f"{what}; {NEEDS_LESS}", False
    return f"this is a bug in sdexport: {type(error).__name__}: {one_line(error)}", True


PREFIX = "SDEXPORT"
"""Of the environment variables that set options: SDEXPORT_GENERATE_BACKEND is its --backend."""
CACHE_VARIABLES = ("SDEXPORT_CACHE", "SDEXPORT_CACHE_GB")
"""Of engines/cache/user_cache.py and engines/cache/graph_cache.py."""
_SETTINGS = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": PREFIX}


@click.group(cls=_Group, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="sdexport")
@verbosity_options
@click.pass_context
def main(context: click.Context) -> None:
    """Export Stable Diffusion checkpoints to ONNX and run them without PyTorch.

    Start with `sdexport demo`, which needs no checkpoint, or with `sdexport export`.
    """
    set_up_logging()
    context.with_resource(interrupts.handled())
    _warn_of_unknown_variables()
    for stream in (sys.stdout, sys.stderr):
        stream = getattr(stream, "stream", stream)
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold any character
            stream.reconfigure(errors="backslashreplace")


def _warn_of_unknown_variables() -> None:
    """Name each variable of the environment that looks like an option and is none."""
    known = {
        variable
        for command in (main, *main.commands.values())
        for option in command.params
        for variable in _variables(command, option)
    } | set(CACHE_VARIABLES)
    for variable in sorted(os.environ):
        if variable.startswith(f"{PREFIX}_") and variable not in known:
            import difflib  # only for this message

            similar = difflib.get_close_matches(variable, known, 1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            _log.warning("the environment variable %s sets no option%s", variable, hint)


def _variables(command: click.Command, option: click.Parameter) -> Iterator[str]:
    """The environment variables of an option: by its long name first, then click's own."""
    start = PREFIX if command is main else f"{PREFIX}_{command.name}"
    long_names = [name[2:] for name in option.opts if name.startswith("--")]
    for name in (*long_names[:1], option.name or ""):
        yield f"{start}_{name}".upper().replace("-", "_")


for _command in (
    export.export,
    export_adapter.export_adapter,
    verify.verify,
    generate.generate,
    serve.serve,
    triton.triton,
    preprocess.preprocess,
    inspect.inspect,
    build.build,
    cache.cache,
    bench.bench,
    sign.sign,
    schedulers.schedulers,
    demo.demo,
):
    main.add_command(_command)
    for _option in _command.params:
        if isinstance(_option, click.Option):  # named as on the command line: ..._GENERATE_STEPS
            _option.envvar = next(_variables(_command, _option))
