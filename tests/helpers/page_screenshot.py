"""The picture of the server's page in the documentation.

python -m tests.helpers.page_screenshot docs/server.webp
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from sdexport.demo_model import PACKAGE_DIR
from tests.helpers.browser import Visit, running_browser
from tests.helpers.live_server import live_server

PROMPTS = (
    "a large red circle on a white background",
    "a small yellow star on a blue background",
    "a large green triangle on a black background",
    "a large orange square on a blue background",
    "a blue star on a white background",
    "a large purple star on an orange background",
)
STEPS = 25


def generated(page: Any) -> bytes:
    """A screenshot after an image of each prompt was generated."""
    page.fill("#num_inference_steps", str(STEPS))
    for number, prompt in enumerate(PROMPTS):
        page.fill("#prompt", prompt)
        page.fill("#seed", str(number))
        page.click("#generate")
        page.wait_for_selector("#generate:visible")
        page.wait_for_selector(f"#history li:nth-child({number + 1})")
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    content: bytes = page.screenshot()
    return content


def main(path: Path) -> None:
    """Write the picture as WebP."""
    size = {"width": 1280, "height": 880}
    with live_server({"demo": PACKAGE_DIR}) as live, running_browser() as browser:
        address = f"http://127.0.0.1:{live.port}/"
        page = Visit(browser, address, viewport=size, color_scheme="light").ready()
        Image.open(io.BytesIO(generated(page))).save(path, quality=82, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
