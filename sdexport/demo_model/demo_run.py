"""The demo: a package of the demo model is verified and generates a contact sheet."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from sdexport.demo_model import MODEL_DIR, PACKAGE_DIR
from sdexport.package_folder import package_folder
from sdexport.runtime.images.metadata import save_image
from sdexport.runtime.pipeline_loading import load_pipeline
from sdexport.verification.text_report import report_lines
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

MakePackage = Callable[[Path, bool], object]
"""Writes the demo model's package to a folder; the flag says whether to replace one there."""


def run(
    folder: Path,
    make_package: MakePackage,
    *,
    force: bool,
    progress: Callable[[str], object] = lambda what: None,
) -> dict[str, Any]:
    """Put a package into folder/package, verify it, and generate folder/sheet.png.

    Args:
      make_package: `copy_package`, or a function that exports the checkpoint.
      progress: called before each part of the verification and after each of the STEPS.
    Returns: paths, the table of checks, whether all passed, and seconds of each stage.
    Raises: FileExistsError: the folder holds a demo already, without `force`.
    """
    package, sheet = folder / "package", folder / "sheet.png"
    if sheet.exists() and not force:
        raise FileExistsError(f"{sheet} exists; use --force to replace it")
    import_module("sdexport.engines.ort.onnxruntime_session")  # fails early if it is not installed
    clock = [time.perf_counter()]
    make_package(package, force)
    clock.append(time.perf_counter())
    checks = verify(package, progress=progress)
    clock.append(time.perf_counter())
    save_image(_generate_sheet(package, progress), sheet)
    clock.append(time.perf_counter())
    seconds = [round(end - start, 2) for start, end in pairwise(clock)]
    return {
        "package": str(package),
        "sheet": str(sheet),
        "passed": checks.passed,
        "seconds": dict(zip(("package", "verify", "generate"), seconds, strict=True)),
        "table": "\n".join(report_lines(checks)),
    }


def copy_package(destination: Path, force: bool) -> None:
    """Copy the package that is installed with sdexport.

    Raises: FileExistsError: see package_folder.
    """
    with package_folder(destination, force=force) as folder:
        shutil.copytree(PACKAGE_DIR, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)


def checkpoint() -> Path:
    """The checkpoint of the demo model.

    Raises: FileNotFoundError: sdexport was installed from a wheel, which does not contain it.
    """
    if not MODEL_DIR.is_dir():
        raise FileNotFoundError(
            f"{MODEL_DIR} does not exist: the checkpoint is in the repository and in the source "
            "distribution of sdexport, not in an installation"
        )
    return MODEL_DIR


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Images of one size in rows of COLUMNS, each with its caption below."""
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


def _generate_sheet(package: Path, progress: Callable[[str], object]) -> Image.Image:
    with load_pipeline(package) as pipeline:
        result = pipeline(
            PROMPTS,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            scheduler="lms",
            seed=[SEED + i for i in range(len(PROMPTS))],
            on_step=lambda step: progress("generate"),
        )
    return contact_sheet(result.images, PROMPTS)


def _wrapped(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
