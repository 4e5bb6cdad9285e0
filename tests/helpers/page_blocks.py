"""The code blocks of README and docs, and the files that they find."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdexport.demo_model import CONTROLNET_PACKAGE_DIR, LORA_DIR, PACKAGE_DIR

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DEMO = {"package": PACKAGE_DIR, "controlnet": CONTROLNET_PACKAGE_DIR, "loras": LORA_DIR}
"""What `sdexport demo` copies."""
PICTURES = ("lora.png", "controlnet.png")
"""Pictures in docs which a block of the page of that name makes: tests.helpers.page_pictures."""
ROWS = {"inpainting.webp": ("photo.png", "mask.png", "whole.png", "pasted.png", "part.png")}
"""Pictures in docs of images next to each other that the blocks of the page of that name make."""
SHOWN_ONLY = {"text", "json", "toml", "dockerfile", "yaml"}

_BLOCK = re.compile(
    r"(?P<marker><!-- not run: [^\n]+ -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$"
    r"(?:\n\n```text\n(?P<printed>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A code block; printed: the text block right below a python block, or None."""

    language: str
    code: str
    line: int
    runs: bool
    printed: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        runs = match["marker"] is None and match["language"] not in SHOWN_ONLY
        yield Block(match["language"], match["code"], line, runs, match["printed"])
