"""The pictures that the examples of docs/lora.md and docs/controlnet.md make.

python -m tests.helpers.page_pictures
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from tests.helpers.page_blocks import DEMO, DOCS, PICTURES, blocks


def main() -> None:
    for picture in PICTURES:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for name, source in DEMO.items():
                shutil.copytree(source, Path("sdexport-demo") / name)
            names: dict[str, object] = {}
            for block in blocks((DOCS / picture).with_suffix(".md")):
                if block.runs and block.language == "python":
                    exec(block.code, names)
            shutil.copyfile(picture, DOCS / picture)


if __name__ == "__main__":
    main()
