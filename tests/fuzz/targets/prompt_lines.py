"""`sdexport generate --prompts FILE`: lines of text or JSON, and the names of the files to write.

The first line of an input is the name for --output.
"""

from __future__ import annotations

from pathlib import Path

from sdexport.commands.generate_jobs import jobs_of, read_rows
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.pipeline import call_argument_names
from tests.fuzz import mutators
from tests.fuzz.harness import Target


def write(folder: Path, data: bytes) -> None:
    (folder / "prompts.txt").write_bytes(data.partition(b"\n")[2])


def run(folder: Path, data: bytes) -> None:
    rows = read_rows(str(folder / "prompts.txt"))
    output = data.partition(b"\n")[0].decode("utf-8", "replace")
    output = output if output.startswith(str(folder)) else f"{folder}/{output}"
    jobs_of(rows, {}, output, seed=1, count=2)


WORDS = (
    *(f'"{name}": ' for name in call_argument_names()),
    *("{index}", "{seed:04d}", "{prompt}", "{", "}", ":", "!r", ".png", ".webp", "/", "..", "\n"),
    *('{"prompt": "a"}', '"output": "x.png"', "-1", "null", '"', "[", "]", ",", "\r\n", "\ufeff"),
)
TARGET = Target(
    "prompt_lines",
    run,
    names=("prompts.txt", "--output", "setting", "name", "/", "seed"),
    write=write,
    mutate=mutators.text(WORDS),
    errors=(InvalidArgumentError, OSError),
)
