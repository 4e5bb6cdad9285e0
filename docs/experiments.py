"""Runs the code of experiments.md: its pictures, and what it prints, are made here.

python docs/experiments.py PACKAGE
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().with_suffix(".md")
PICTURES = PAGE.with_suffix("")
_CODE = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n.*?```\n)?", re.DOTALL)
_PICTURE = re.compile(r"!\[[^]]*\]\(experiments/([^)]+)\)")


def run(page: str, package: Path, folder: Path) -> str:
    """Run the page's code in `folder`, where `package` is called "package".

    Returns: the page, with what each block printed below it.
    """
    names: dict[str, Any] = {}

    def block(match: re.Match[str]) -> str:
        line = page.count("\n", 0, match.start("code"))
        code = compile("\n" * line + match["code"], PAGE.name, "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        text = f"```python\n{match['code']}```\n"
        return f"{text}\n```text\n{printed.getvalue()}```\n" if printed.getvalue() else text

    (folder / "package").symlink_to(package.resolve())
    with contextlib.chdir(folder):
        try:
            return _CODE.sub(block, page)
        finally:
            if "pipe" in names:
                names["pipe"].close()


def pictures(page: str) -> list[str]:
    """Names of the pictures that the page shows, below docs/experiments."""
    return _PICTURE.findall(page)


def made(folder: Path, picture: str) -> Path:
    """Where the code left a picture: in `folder` or below it."""
    return next(folder.rglob(picture))


def main(package: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        page = run(page, Path(package), Path(name))
        for picture in pictures(page):
            shutil.copyfile(made(Path(name), picture), PICTURES / picture)
    beside = PAGE.with_suffix(".md.tmp")
    beside.write_text(page, encoding="utf-8")
    os.replace(beside, PAGE)


if __name__ == "__main__":
    main(*sys.argv[1:])
