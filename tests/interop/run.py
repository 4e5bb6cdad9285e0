"""Packages in Optimum's pipelines, and Optimum's folders in this runtime: the same images.

    python -m tests.interop.run [--venv FOLDER] [--work FOLDER] [FAMILY]...

Creates Optimum's environment if there is none, exports small random checkpoints of every family
and the demo model with both exporters, and generates images of each package with both runtimes.
The exit status is 0 if every two images differ by at most IMAGE_ABS of 255 and only the exports in
UNSUPPORTED fail.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from sdexport import load_pipeline
from sdexport.demo_model import MODEL_DIR
from sdexport.exporter import export
from tests.helpers.families import FAMILIES, build
from tests.tolerances import IMAGE_ABS

HERE = Path(__file__).parent
PROMPTS = ["a small yellow star on a blue background", "a large red circle, 🔴 très joli"]
NEGATIVE = "a red circle"
CLASSES = {
    "lcm": "ORTLatentConsistencyModelPipeline",
    "inpainting": "ORTStableDiffusionInpaintPipeline",
    "sdxl": "ORTStableDiffusionXLPipeline",
    "sdxl-turbo": "ORTStableDiffusionXLPipeline",
    "sdxl-inpainting": "ORTStableDiffusionXLInpaintPipeline",
    "refiner": "ORTStableDiffusionXLImg2ImgPipeline",
}
CHECKED = "sd1-checker"
"""SD 1 as it is published: with a safety checker, which Optimum does not read. Field case C7."""
HALF = ("sd1", "sdxl")
"""Families whose packages are tried in half precision too, and with inputs for adapters."""
ADAPTERS = "adapters"
"""A package whose graphs for all kinds of adapters lie next to those that Optimum opens."""
UNSUPPORTED = {("tiny-vae", "Optimum"): 'attribute named "down_block_types"'}
"""(family, exporter) -> the error of Optimum; everything else must work."""
LEAST_CONTRAST = 20
"""Steps of 255 between the darkest and the brightest: a flat image would prove nothing."""


@dataclass(frozen=True)
class Case:
    """One image or batch: a folder, its exporter, and the arguments of both pipelines."""

    family: str
    exporter: str
    folder: Path
    name: str
    arguments: dict[str, Any]
    images: dict[str, str]

    @property
    def result(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}-{self.name}.npy")

    def job(self) -> dict[str, Any]:
        """For optimum_side.py."""
        class_ = CLASSES.get(self.family, "ORTStableDiffusionPipeline")
        paths = {"folder": str(self.folder), "result": str(self.result)}
        given = {"arguments": self.arguments, "images": self.images, "seed": 7}
        return {"do": "generate", "class": class_} | paths | given

    def generate(self) -> np.ndarray:
        images = {name: Image.open(path) for name, path in self.images.items()}
        with load_pipeline(self.folder) as pipeline:
            result = pipeline(seed=7, **self.arguments, **images)
        return np.stack([np.asarray(image) for image in result.images])


def cases(family: str, exporter: str, folder: Path, images: dict[str, str]) -> list[Case]:
    arguments: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 6.0}
    if family != "lcm":  # its pipeline knows none
        arguments["negative_prompt"] = NEGATIVE
    given = {}
    if "inpainting" in family or family == "refiner":
        given = {"image": images["image"]}
        if family != "refiner":
            given["mask_image"] = images["mask_image"]
        arguments["strength"] = 0.7
    one = {"prompt": PROMPTS[0]} | arguments
    found = [Case(family, exporter, folder, "one", one, given)]
    if not given:  # sizes that halve evenly at every level, as Optimum's graphs want
        two = {"prompt": PROMPTS, "height": 96, "width": 128} | arguments
        if "negative_prompt" in two:
            two["negative_prompt"] = [NEGATIVE] * 2
        found.append(Case(family, exporter, folder, "two", two, {}))
    return found


def as_published(checkpoint: Path) -> Path:
    """Text encoder's weights by the names of published checkpoints, which all transformers read.

    transformers 5 writes CLIPTextModel without the prefix; version 4 then takes fresh weights.
    """
    path = checkpoint / "text_encoder" / "model.safetensors"
    if path.is_file():
        weights = load_file(path)
        named = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in weights.items()}
        save_file(named, path, metadata={"format": "pt"})
    return checkpoint


def prepare(family: str, work: Path) -> Path:
    checkpoint = work / f"{family}-checkpoint"
    if checkpoint.exists():
        return checkpoint
    if family == "shapes":
        shutil.copytree(MODEL_DIR, checkpoint)
    else:
        build("sd1" if family == CHECKED else family, checkpoint)
    if family == CHECKED:
        add_checker(checkpoint)
    return as_published(checkpoint)


def add_checker(checkpoint: Path) -> None:
    """A small safety checker and its feature extractor, in the folder and in model_index.json."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = CLIPConfig(
        vision_config={**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 16},
        text_config={**small, "num_attention_heads": 2},
        projection_dim=8,
    )
    StableDiffusionSafetyChecker(config).save_pretrained(checkpoint / "safety_checker")
    CLIPImageProcessor(size=32, crop_size=32).save_pretrained(checkpoint / "feature_extractor")
    path = checkpoint / "model_index.json"
    entries = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def input_images(work: Path) -> dict[str, str]:
    """A smooth image and a mask, for image to image and inpainting."""
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    mask = np.zeros((64, 64), np.uint8)
    mask[16:, :40] = 255
    small.resize((64, 64), Image.Resampling.BICUBIC).save(work / "image.png")
    Image.fromarray(mask).save(work / "mask.png")
    return {"image": str(work / "image.png"), "mask_image": str(work / "mask.png")}


def environment(folder: Path) -> Path:
    """The Python of Optimum's environment, made if it is not there or of other versions."""
    python = folder / "bin" / "python"
    wanted = (HERE / "requirements.txt").read_text()
    stamp = folder / "requirements.txt"
    if not stamp.is_file() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*install, "-r", HERE / "requirements.txt"], check=True)
        stamp.write_text(wanted)
    return python


def optimum(python: Path, work: Path, jobs: Sequence[dict[str, Any]]) -> None:
    """Let Optimum do the jobs; what it prints goes to optimum.log."""
    (work / "jobs.json").write_text(json.dumps(jobs))
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with (work / "optimum.log").open("a") as log:
        command = [python, HERE / "optimum_side.py", work / "jobs.json"]
        subprocess.run(command, check=True, env=environ, stdout=log, stderr=log)


def compare(case: Case) -> tuple[bool, str]:
    """Whether it is as it should be, and what to print."""
    unsupported = UNSUPPORTED.get((case.family, case.exporter))
    for error in (Path(f"{case.folder}.error"), Path(f"{case.result}.error")):
        if error.is_file():
            said = error.read_text()
            known = unsupported is not None and re.search(unsupported, said) is not None
            return known, f"Optimum: {said}"
    if unsupported is not None:
        return False, "Optimum was expected to reject this"
    theirs = np.load(case.result)
    ours = case.generate()
    if ours.shape != theirs.shape:
        return False, f"{ours.shape} here, {theirs.shape} in Optimum"
    worst = int(np.abs(ours.astype(int) - theirs).max())
    contrast = int(np.ptp(theirs))
    said = f"{worst} of 255 apart, contrast {contrast}, {theirs.shape[0]} of {theirs.shape[1:3]}"
    return worst <= IMAGE_ABS and contrast >= LEAST_CONTRAST, said


def exports_of(family: str) -> dict[str, dict[str, Any]]:
    """The packages to make of a family: the options of `export` by name."""
    found: dict[str, dict[str, Any]] = {"fp32": {"precision": "fp32"}}
    if family in HALF:
        kinds = ("lora", "controlnet", "t2i_adapter", "ip_adapter")
        found |= {
            "fp16": {"precision": "fp16"},
            ADAPTERS: {f"{kind}_inputs": True for kind in kinds},
        }
    return found


def run(family: str, python: Path, work: Path) -> bool:
    """Export and generate with both; print a row for each pair of images."""
    images, checkpoint = input_images(work), prepare(family, work)
    theirs = work / f"{family}-optimum"
    exports = family != CHECKED  # Optimum's folder would check the images
    every = cases(family, "Optimum", theirs, images) if exports else []
    for name, options in exports_of(family).items():
        package = work / f"{family}-{name}"
        if not package.exists():
            export(checkpoint, package, **options)
        every += cases(family, name, package, images)
    exported = {"do": "export", "checkpoint": str(checkpoint), "folder": str(theirs)}
    first = [exported] if exports and not theirs.exists() else []
    optimum(python, work, [*first, *(case.job() for case in every)])
    good = True
    for case in every:
        fine, said = compare(case)
        good = good and fine
        verdict = "ok" if fine else "FAILED"
        row = f"{family:<16} {case.exporter:<8} {case.name:<4} {verdict:<7} {said}\n"
        sys.stdout.write(row)
        sys.stdout.flush()
    return good


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--venv", type=Path, default=Path(".venv-interop"))
    parser.add_argument(
        "--work", type=Path, help="keep checkpoints, packages and logs here, and use what is there"
    )
    parser.add_argument("family", nargs="*", default=[*FAMILIES, CHECKED, "shapes"])
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # of the exporters' own internals
    python = environment(given.venv.absolute())
    with tempfile.TemporaryDirectory() as fresh:
        work = given.work or Path(fresh)
        work.mkdir(parents=True, exist_ok=True)
        good = [run(family, python, work) for family in given.family]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
