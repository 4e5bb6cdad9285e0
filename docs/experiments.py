"""Run the code of experiments.md: make its images, and insert what each block printed.

python docs/experiments.py PACKAGE
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from sdexport.engines.files import write_atomically

PAGE = Path(__file__).resolve().with_suffix(".md")
IMAGES = PAGE.with_suffix("")
_CODE = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n.*?```\n)?", re.DOTALL)
_IMAGE = re.compile(r"!\[[^]]*\]\(experiments/([^)]+)\)")


def run(page: str, package: Path, folder: Path) -> str:
    """Run the code blocks of a page in `folder`, with `package` as sdexport-demo/package.

    Returns: the page, with the output of each block below it.
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

    (folder / "sdexport-demo").mkdir()
    (folder / "sdexport-demo" / "package").symlink_to(package.resolve())
    with contextlib.chdir(folder):
        try:
            return _CODE.sub(block, page)
        finally:
            if "pipe" in names:
                names["pipe"].close()


def images(page: str) -> list[str]:
    """File names of the images on the page, in docs/experiments."""
    return _IMAGE.findall(page)


def made(folder: Path, image: str) -> Path:
    """The file of that name that the code wrote, in `folder` or below."""
    return next(folder.rglob(image))


def main(package: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        page = run(page, Path(package), Path(name))
        for image in images(page):
            shutil.copyfile(made(Path(name), image), IMAGES / image)
    write_atomically(PAGE, page)


if __name__ == "__main__":
    main(*sys.argv[1:])
