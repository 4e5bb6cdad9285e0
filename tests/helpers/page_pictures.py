"""The pictures that the examples of docs/lora.md, controlnet.md and inpainting.md make.

python -m tests.helpers.page_pictures [PICTURE...]

Those of docs/experiments.md are made by docs/experiments.py.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.helpers.page_blocks import DEMO, DOCS, PICTURES, ROWS, blocks


def main(*pictures: str) -> None:
    for picture in pictures or (*PICTURES, *ROWS):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for name, source in DEMO.items():
                shutil.copytree(source, Path("sdexport-demo") / name)
            names: dict[str, object] = {}
            for block in blocks((DOCS / picture).with_suffix(".md")):
                if block.runs and block.language == "python":
                    exec(block.code, names)
                elif block.runs and picture in ROWS:
                    subprocess.run(["bash", "-euc", block.code], check=True)
            if picture in ROWS:
                save_row(picture)
            shutil.copyfile(picture, DOCS / picture)


def save_row(picture: str) -> None:
    """Save the images of a row next to each other, all of the same size."""
    images = [Image.open(name) for name in ROWS[picture]]
    width, height = images[0].size
    row = Image.new("RGB", (len(images) * (width + 8) - 8, height), "white")
    for i, image in enumerate(images):
        row.paste(image, (i * (width + 8), 0))
    row.save(picture, quality=88)


if __name__ == "__main__":
    main(*sys.argv[1:])
