"""`sdexport inspect` of a changed package: what it prints is harmless on a terminal."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path

from sdexport.commands.inspect import inspect
from sdexport.commands.output import escaped_streams
from sdexport.engines.printable_text import escaped
from tests.fuzz.harness import Target
from tests.fuzz.targets import package


def run(folder: Path, data: bytes) -> None:
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(io.StringIO()):
        for options in ([], ["--json"]):
            with escaped_streams():
                inspect.main(
                    [str(folder / "package"), *options],
                    standalone_mode=False,
                    help_option_names=["-h", "--help"],  # click keeps the option of the first call
                )
    text = written.getvalue()
    assert escaped(text, keep="\n") == text


TARGET: Target = replace(package.TARGET, name="inspect_package", run=run)
