"""The kinds of files that users bring, declared on the tests that show what happens to them.

    python -m tests.helpers.file_kinds

writes docs/file-kinds.md from the declarations. They are read from the source of the tests, so
their arguments are literals.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sdexport.engines.files import write_atomically

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "file-kinds.md"
COMMAND = "python -m tests.helpers.file_kinds"
GROUPS = {
    "checkpoint": "Checkpoints and folders",
    "vae": "VAE files",
    "lora": "LoRA and related files",
    "lora_base": "LoRA of other models",
    "embedding": "Textual inversion",
    "other": "Files that are something else",
}
_HEAD = f"""\
<!-- Written by `{COMMAND}` from the declarations in the tests: change those. -->
# File kinds

What `sdexport export` does with each kind of file. Every row is declared on the test that shows it;
where a row quotes a message, the test asserts that message.
"""


@dataclass(frozen=True)
class FileKind:
    """One row of the page.

    recognised: by which names, shapes or settings.
    result: what happens. says: the part of a message that the test asserts; empty if there is none.
    test: path and name of the function.
    """

    group: str
    name: str
    recognised: str
    result: str
    says: str
    test: str


def file_kind(
    group: str, name: str, *, recognised: str, result: str, says: str = ""
) -> pytest.MarkDecorator:
    """Declare a row of docs/file-kinds.md: as a decorator of a test, or as `marks` of a case.

    Args:
      group: a key of GROUPS.
      recognised: by which names, shapes or settings the kind is recognised.
      result: what happens, such as "loaded", "merged", "rejected" or "merged, with a warning".
      says: a part of the error or warning. The test takes it as the fixture `says` and asserts it.
    """
    assert group in GROUPS, group
    return pytest.mark.file_kind(group, name, recognised=recognised, result=result, says=says)


@functools.cache
def declared() -> list[FileKind]:
    """All rows, in the order of GROUPS, then of files and lines."""
    found = [row for path in sorted((ROOT / "tests").rglob("test_*.py")) for row in _rows_of(path)]
    order = list(GROUPS)
    return sorted(found, key=lambda row: order.index(row.group))


def _rows_of(path: Path) -> Iterator[FileKind]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        calls = [c for d in node.decorator_list for c in ast.walk(d) if _is_declaration(c)]
        test = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
        arguments = {argument.arg for argument in node.args.args}
        for call in calls:
            texts: list[Any] = [ast.literal_eval(argument) for argument in call.args]
            named = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
            row = FileKind(*texts, **{"says": "", **named}, test=test)
            assert not row.says or "says" in arguments, f"{test} does not take the fixture says"
            yield row


def _is_declaration(node: Any) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "file_kind"


def page() -> str:
    """The text of docs/file-kinds.md."""
    rows = declared()
    lines = [_HEAD]
    for group, title in GROUPS.items():
        if mine := [row for row in rows if row.group == group]:
            lines += [f"## {title}\n", "| file | recognised by | result |", "|---|---|---|"]
            lines += map(_line, mine)
            lines.append("")
    return "\n".join(lines)


def _line(row: FileKind) -> str:
    result = f"{row.result}: “{row.says}”" if row.says else row.result
    path, _, name = row.test.partition("::")
    link = f"https://github.com/sdexport/sdexport/blob/main/{path}"
    cells = (row.name, row.recognised, f'{result} ([test]({link} "{name}"))')
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    write_atomically(PAGE, page())
