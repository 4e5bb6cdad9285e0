"""How well the demo model's adapters work: `python -m sdexport.demo_model.evaluate_adapters`.

Held-out scenes are generated with the ControlNet, with each LoRA, and with both, by diffusers, and
judged by image analysis. The exit status is 1 if a figure is below its bound.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image
from tqdm import tqdm

from sdexport.demo_model import CONTROLNET_DIR, LORA_DIR, MODEL_DIR, dataset, judge, styles
from sdexport.demo_model import evaluate as evaluation
from sdexport.demo_model.dataset import Scene

CASES = 256
BATCH = 16
LEAST_OVERLAP = 0.85
"""Intersection over union with the scene's objects from which an outline counts as followed."""
FULL, NONE = 0.45, 0.2
"""A style is present from the first amount (see styles.style_amount), absent up to the second. The
VAE softens stripes: it leaves amounts of 0.57 to 0.95 of them."""
BETWEEN = 0.1
"""How far the mean amount at scale 0.5 is from those at 0 and 1, at least."""
FOLLOWED_BOUND, STYLE_BOUND = 0.95, 0.95


class Case(NamedTuple):
    """A prompt, and the scene whose outlines the ControlNet is given."""

    prompt: str
    scene: Scene


def held_out_cases(count: int) -> list[Case]:
    """Held-out prompts, half of them with one object and half with two, each with a scene."""
    rng = np.random.default_rng(13)
    singles = evaluation.held_out_singles(count - count // 2)
    pairs = evaluation.held_out_pairs(count // 2)
    cases = []
    for prompt, wanted in [*singles, *pairs]:
        place: Any = (
            dataset.place_single if isinstance(wanted, dataset.Single) else dataset.place_pair
        )
        cases.append(Case(prompt, place(wanted, rng)))
    return cases


def overlap(image: np.ndarray, scene: Scene) -> float:
    """Intersection over union of the objects in an image and in the scene, 0..1.

    A pixel belongs to an object if it differs from the background by more than half of what nearly
    all of the closest object does.
    """
    border = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3)])
    distances = np.linalg.norm(image - np.median(border.astype(float), axis=0), axis=-1)
    wanted = np.max([dataset.coverage(shape) for shape in scene.shapes], axis=0) > 0.5
    ys, xs = np.mgrid[0 : len(image), 0 : len(image)] + 0.5
    away = [np.hypot(xs - s.x, ys - s.y) - s.radius for s in scene.shapes]
    closest = np.argmin(away, axis=0)
    found = np.zeros_like(wanted)
    for number, shape in enumerate(scene.shapes):
        inside = dataset.coverage(replace(shape, radius=0.8 * shape.radius)) > 0.5
        limit = max(judge.FAR / 2, 0.5 * float(np.percentile(distances[inside], 10)))
        found |= (closest == number) & (distances > limit)
    return float((found & wanted).sum() / (found | wanted).sum())


def located(image: np.ndarray, scene: Scene) -> Scene | None:
    """The scene with its shapes where the image has them; None if it has fewer objects."""
    border = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3)])
    distances = np.linalg.norm(image - np.median(border.astype(float), axis=0), axis=-1)
    limit = max(judge.FAR / 2, 0.35 * float(np.percentile(distances, 98)))
    regions = sorted(judge.regions(distances > limit), key=lambda region: -int(region.sum()))
    count = len(scene.shapes)
    if len(regions) < count:
        return None
    colours = [np.median(image[region], axis=0) for region in regions[:count]]

    def misfit(order: tuple[int, ...]) -> float:
        """How far the regions' colours are from those of the scene's shapes, in any style."""
        total = 0.0
        for i, shape in zip(order, scene.shapes, strict=True):
            tone = styles.stripe_colour(shape.colour, scene.background)
            every = np.array([shape.colour, tone, styles.soft_colour(shape.colour)])
            total += float(np.linalg.norm(colours[i] - every, axis=1).min())
        return total

    best = min(itertools.permutations(range(count)), key=misfit)
    fits = [judge.fit(regions[i], s.kind)[1] for i, s in zip(best, scene.shapes, strict=True)]
    shapes = zip(fits, scene.shapes, strict=True)
    return replace(scene, shapes=tuple(replace(f, colour=s.colour) for f, s in shapes))


class Adapters:
    """The demo model in diffusers with its ControlNet and LoRAs."""

    def __init__(self, model: Path, controlnet: Path, loras: Path) -> None:
        net = ControlNetModel.from_pretrained(controlnet, torch_dtype=torch.float32)
        self._pipe = StableDiffusionControlNetPipeline.from_pretrained(
            model, controlnet=net, torch_dtype=torch.float32
        )
        self._pipe.set_progress_bar_config(disable=True)
        for style in styles.STYLES:
            self._pipe.load_lora_weights(
                loras, weight_name=f"{style}.safetensors", adapter_name=style
            )

    def generate(
        self,
        cases: list[Case],
        *,
        control: float = 0.0,
        style: str | None = None,
        scale: float = 1.0,
    ) -> list[np.ndarray]:
        """One image for each case; case number i has seed i."""
        if style is None:
            self._pipe.disable_lora()
        else:
            self._pipe.enable_lora()
            self._pipe.set_adapters([style], [scale])
        images: list[np.ndarray] = []
        for start in tqdm(range(0, len(cases), BATCH), disable=None, leave=False):
            rows = cases[start : start + BATCH]
            result = self._pipe(
                [case.prompt for case in rows],
                image=[Image.fromarray(dataset.render_outlines(case.scene)) for case in rows],
                controlnet_conditioning_scale=control,
                num_inference_steps=evaluation.STEPS,
                guidance_scale=evaluation.GUIDANCE_SCALE,
                generator=[torch.Generator().manual_seed(start + i) for i in range(len(rows))],
                output_type="np",
            )
            images += [np.rint(image * 255).astype(np.uint8) for image in result.images]
        return images


def judged(images: list[np.ndarray], cases: list[Case], style: str | None) -> dict[str, float]:
    """The figures of one way to generate images with the ControlNet, with a LoRA or without one."""
    overlaps = np.array([overlap(i, c.scene) for i, c in zip(images, cases, strict=True)])
    figures = {
        "outline": float(np.mean(overlaps >= LEAST_OVERLAP)),
        "mean overlap": float(overlaps.mean()),
    }
    if style:
        amounts = [
            styles.style_amount(i, c.scene, style) for i, c in zip(images, cases, strict=True)
        ]
        figures |= {
            "style": float(np.mean(np.array(amounts) >= FULL)),
            "mean amount": float(np.mean(amounts)),
        }
    return figures


def judged_alone(images: list[np.ndarray], cases: list[Case], style: str) -> dict[str, float]:
    """The figures with a LoRA alone, where the objects may be anywhere."""
    amounts = []
    for image, case in zip(images, cases, strict=True):
        scene = located(image, case.scene)
        amounts.append(styles.style_amount(image, scene, style) if scene else 0.0)
    return {
        "style": float(np.mean(np.array(amounts) >= FULL)),
        "mean amount": float(np.mean(amounts)),
    }


def run(adapters: Adapters, count: int) -> dict[str, dict[str, float]]:
    """The figures with the ControlNet and with each LoRA alone, and with both at scales 0 to 1."""
    cases = held_out_cases(count)
    plain = adapters.generate(cases, control=1.0)
    report = {"controlnet": judged(plain, cases, None)}
    for style in styles.STYLES:
        report[f"{style} 0.0"] = judged(plain, cases, style)
        for scale in (0.5, 1.0):
            images = adapters.generate(cases, control=1.0, style=style, scale=scale)
            report[f"{style} {scale}"] = judged(images, cases, style)
        alone = adapters.generate(cases, style=style)
        report[f"{style} alone"] = judged_alone(alone, cases, style)
    return report


def passes(report: dict[str, dict[str, float]]) -> bool:
    """Whether outlines are followed, and styles present at scale 1 and in between at 0.5."""
    followed = [figures["outline"] for figures in report.values() if "outline" in figures]
    present = [report[f"{s} {how}"]["style"] for s in styles.STYLES for how in ("1.0", "alone")]
    amounts = {
        s: [report[f"{s} {x}"]["mean amount"] for x in (0.0, 0.5, 1.0)] for s in styles.STYLES
    }
    return (
        min(followed) >= FOLLOWED_BOUND
        and min(present) >= STYLE_BOUND
        and all(none <= NONE for none, _, _ in amounts.values())
        and all(none + BETWEEN <= half <= full - BETWEEN for none, half, full in amounts.values())
    )


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m sdexport.demo_model.evaluate_adapters"
    )
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--controlnet", type=Path, default=CONTROLNET_DIR)
    parser.add_argument("--loras", type=Path, default=LORA_DIR)
    parser.add_argument("--cases", type=int, default=CASES)
    args = parser.parse_args()
    report = run(Adapters(args.model, args.controlnet, args.loras), args.cases)
    print(json.dumps(report, indent=2))
    if not passes(report):
        sys.exit(1)


if __name__ == "__main__":
    main()
