"""The demo: packages of the demo model are verified and generate a contact sheet."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from sdexport.demo_model import CONTROLNET_PACKAGE_DIR, LORA_DIR, MODEL_DIR, dataset
from sdexport.demo_model.dataset import Scene, Shape
from sdexport.engines.files import write_atomically
from sdexport.package_folder import package_folder
from sdexport.runtime.adapters.controlnet_argument import ControlNet
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
LORA_SCALES = {"striped": [1.0, 0.5, 0.0, 0.0], "soft": [0.0, 0.0, 1.0, 0.5]}
"""Scales of the LoRAs in a row of the sheet, with the prompts and seeds of the row above."""
CONTROLLED = "a red circle above a blue square on a yellow background"
OUTLINED = Scene(
    dataset.COLOURS["yellow"],
    (
        Shape("circle", dataset.COLOURS["red"], 70, 34, 24),
        Shape("square", dataset.COLOURS["blue"], 58, 94, 26, 0.1),
    ),
)
"""The scene whose outlines are the control image."""
CONTROLLED_GUIDANCE = 2.5
"""More would bend the edges of the shapes."""
CONTROLLED_LORA_SCALES = {"striped": [0.0, 1.0, 0.0], "soft": [0.0, 0.0, 1.0]}
STEPS, GUIDANCE_SCALE, SEED = 25, 5.0, 0
CALLS = 3
"""How often the pipeline is called."""
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
    """Put packages and LoRAs into a folder, verify the packages, and generate folder/sheet.png.

    The folder will hold the demo model's package, its ControlNet's (controlnet) and its LoRAs
    (loras).

    Args:
      make_package: `copy_package`, or a function that exports the checkpoint.
      progress: called before each part of the verification and after each of the STEPS, of each of
        the CALLS.
    Returns: paths, the table of checks, whether all passed, and seconds of each stage.
    Raises: FileExistsError: the folder holds a demo already, without `force`.
    """
    package, controlnet, loras = (folder / name for name in ("package", "controlnet", "loras"))
    sheet = folder / "sheet.png"
    copies = {loras / source.name: source for source in sorted(LORA_DIR.glob("*.safetensors"))}
    for path in (sheet, *copies):
        if path.exists() and not force:
            raise FileExistsError(f"{path} exists; use --force to replace it")
    import_module("sdexport.engines.ort.onnxruntime_session")  # fails early if it is not installed
    clock = [time.perf_counter()]
    make_package(package, force)
    copy_package(CONTROLNET_PACKAGE_DIR, controlnet, force=force)
    loras.mkdir(exist_ok=True)
    for copy, source in copies.items():
        write_atomically(copy, source.read_bytes())
    clock.append(time.perf_counter())
    checks = [verify(each, progress=progress) for each in (package, controlnet)]
    clock.append(time.perf_counter())
    save_image(_generate_sheet(folder, progress), sheet)
    clock.append(time.perf_counter())
    seconds = [round(end - start, 2) for start, end in pairwise(clock)]
    return {
        "package": str(package),
        "controlnet": str(controlnet),
        "loras": str(loras),
        "sheet": str(sheet),
        "passed": all(each.passed for each in checks),
        "seconds": dict(zip(("package", "verify", "generate"), seconds, strict=True)),
        "table": "\n\n".join("\n".join(report_lines(each)) for each in checks),
    }


def copy_package(source: Path, destination: Path, *, force: bool) -> None:
    """Copy a package that is installed with sdexport.

    Raises: FileExistsError: see package_folder.
    """
    with package_folder(destination, force=force) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)


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


def _generate_sheet(folder: Path, progress: Callable[[str], object]) -> Image.Image:
    """The prompts; LoRAs, with the last four of them; and a ControlNet, alone and with LoRAs."""
    seeds = [SEED + i for i in range(len(PROMPTS))]
    outlines = Image.fromarray(dataset.render_outlines(OUTLINED))
    with load_pipeline(folder / "package") as pipeline:

        def generate(
            prompts: Sequence[str],
            seeds: Sequence[int],
            guidance_scale: float = GUIDANCE_SCALE,
            **adapters: Any,
        ) -> list[Any]:
            result = pipeline(
                prompts,
                num_inference_steps=STEPS,
                guidance_scale=guidance_scale,
                scheduler="lms",
                seed=seeds,
                on_step=lambda step: progress("generate"),
                **adapters,
            )
            return list(result.images)

        images = generate(PROMPTS, seeds)
        images += generate(PROMPTS[-COLUMNS:], seeds[-COLUMNS:], loras=_loras(folder, LORA_SCALES))
        images.append(outlines)
        images += generate(
            [CONTROLLED] * 3,
            [SEED] * 3,
            CONTROLLED_GUIDANCE,
            controlnets=[ControlNet(folder / "controlnet", outlines)],
            loras=_loras(folder, CONTROLLED_LORA_SCALES),
        )
    return contact_sheet(images, captions())


def _loras(folder: Path, scales: Mapping[str, Sequence[float]]) -> list[Any]:
    """The argument `loras` of a call, with a scale for each image."""
    return [(folder / "loras" / f"{style}.safetensors", each) for style, each in scales.items()]


def captions() -> list[str]:
    """Of the sheet's images."""
    styled = [
        f"the image above with the LoRA {style}" + (f" at scale {scale:g}" if scale < 1 else "")
        for style, scales in LORA_SCALES.items()
        for scale in scales
        if scale
    ]
    both = [f"the same with the LoRA {style}" for style in CONTROLLED_LORA_SCALES]
    return [
        *PROMPTS,
        *styled,
        "control image of a ControlNet, for the next three",
        CONTROLLED,
        *both,
    ]


def _wrapped(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
