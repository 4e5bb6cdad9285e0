"""The demo: the embedded model from checkpoint to a sheet of pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from sdexport.demo_model import MODEL_DIR
from sdexport.runtime.images.metadata import save_image
from sdexport.runtime.pipeline import load_pipeline
from sdexport.verification.report import table
from sdexport.verification.verifier import verify

PROMPTS = (
    "a large red circle on a white background",
    "a small yellow star on a blue background",
    "a large green triangle on a black background",
    "a small white square on a purple background",
    "a large purple star on an orange background",
    "a small black circle on a yellow background",
    "large orange square, blue background",
    "a green background with a small red triangle",
    "a red circle above a blue square on a white background",
    "a yellow star below a purple circle on a green background",
    "a white square left of a black triangle on a red background",
    "a blue star right of an orange star on a white background",
)
COLUMNS = 4
STEPS, GUIDANCE_SCALE, SEED = 25, 5.0, 0
MARGIN, CAPTION = 8, 44


def run(
    folder: Path,
    export: Callable[..., Any],
    *,
    force: bool,
    progress: Callable[[str], object] = lambda what: None,
) -> dict[str, Any]:
    """Export to folder/package, verify, paint folder/sheet.png; returns the report.

    Args:
      export: called with source, destination and `force`.
      progress: called before each part of the verification and after each of the STEPS.
    Raises: FileExistsError: there is a demo already, without `force`.
    """
    package, sheet = folder / "package", folder / "sheet.png"
    if sheet.exists() and not force:
        raise FileExistsError(f"{sheet} exists; give --force to replace it")
    import_module(
        "sdexport.engines.ort.onnxruntime_session"
    )  # says what to install before the long work
    clock = [time.perf_counter()]
    export(MODEL_DIR, package, force=force)
    clock.append(time.perf_counter())
    checks = verify(package, progress=progress)
    clock.append(time.perf_counter())
    with load_pipeline(package) as pipeline:
        result = pipeline(
            PROMPTS,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            scheduler="lms",
            seed=[SEED + i for i in range(len(PROMPTS))],
            on_step=lambda step: progress("paint"),
        )
    save_image(contact_sheet(result.images, PROMPTS), sheet)
    clock.append(time.perf_counter())
    stages = ("export", "verify", "paint")
    return {
        "package": str(package),
        "sheet": str(sheet),
        "passed": all(check.passed for check in checks),
        "seconds": {
            name: round(b - a, 2) for name, a, b in zip(stages, clock, clock[1:], strict=False)
        },
        "table": table(checks),
    }


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Pictures of one size in rows of COLUMNS, each over its caption."""
    width, height = images[0].size
    cell = (width + MARGIN, height + CAPTION + MARGIN)
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x = MARGIN + number % COLUMNS * cell[0]
        y = MARGIN + number // COLUMNS * cell[1]
        sheet.paste(image, (x, y))
        draw.multiline_text((x, y + height + 2), _wrapped(draw, caption, width), fill="black")
    return sheet


def _wrapped(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
