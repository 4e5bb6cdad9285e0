"""How well the demo model's adapters work: `python -m sdexport.demo_model.evaluate_adapters`.

Held-out scenes are generated with the ControlNet, with each LoRA, and with both, and judged by
image analysis. The exit status is 1 if a figure is below its bound.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from sdexport.demo_model import (
    CONTROLNET_PACKAGE_DIR,
    LORA_DIR,
    PACKAGE_DIR,
    dataset,
    judge,
    styles,
)
from sdexport.demo_model import evaluate as evaluation
from sdexport.demo_model.dataset import Scene
from sdexport.runtime.adapters.controlnet_argument import ControlNet
from sdexport.runtime.packages.package import Package
from sdexport.runtime.pipeline_loading import load_pipeline

CASES = 256
BATCH = 16
SCHEDULER = "ddim"
GUIDANCE_SCALE = 2.5
"""Less than for prompts alone: guidance bends the edges of shapes that outlines already define."""
OVERLAP_BOUND = 0.85
"""Mean intersection over union with the scene's objects, at least."""
FULL, NONE = 0.35, 0.2
"""A style is present from the first amount (see styles.style_amount), absent up to the second. The
VAE softens stripes: it leaves amounts of 0.38 to 0.97 of most."""
GUIDED = f"controlnet at {evaluation.GUIDANCE_SCALE:g}"
"""Entry of the report: with the guidance of the evaluation of prompts, without a bound."""
BETWEEN = 0.1
"""How far the mean amount at scale 0.5 is from those at 0 and 1, at least."""
STYLE_BOUND = 0.95
"""The share of images in which a style is present at scale 1, at least."""


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


def overlaps(image: np.ndarray, scene: Scene) -> list[float]:
    """Intersection over union of each object in an image with the scene's, 0..1.

    A pixel belongs to the closest object, if it differs from the background by more than half of
    what nearly all of that object does, within and outside of the stripe that the object may have.
    """
    border = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3)])
    distances = np.linalg.norm(image - np.median(border.astype(float), axis=0), axis=-1)
    ys, xs = np.mgrid[0 : len(image), 0 : len(image)] + 0.5
    away = [np.hypot(xs - s.x, ys - s.y) - s.radius for s in scene.shapes]
    closest = np.argmin(away, axis=0)
    shares = []
    for number, shape in enumerate(scene.shapes):
        near = closest == number
        wanted = near & (dataset.coverage(shape) > 0.5)
        inside = dataset.coverage(replace(shape, radius=0.8 * shape.radius)) > 0.5
        stripe = styles.in_stripe(shape)
        limits = [
            max(judge.FAR / 2, 0.5 * float(np.percentile(distances[inside & part], 10)))
            for part in (stripe, ~stripe)
        ]
        found = near & (distances > np.where(stripe, *limits))
        shares.append(float((found & wanted).sum() / (found | wanted).sum()))
    return shares


def located(image: np.ndarray, scene: Scene) -> Scene | None:
    """The scene with its shapes where the image has them; None if it has fewer objects."""
    border = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3)])
    distances = np.linalg.norm(image - np.median(border.astype(float), axis=0), axis=-1)
    limit = max(judge.FAR / 2, 0.35 * float(np.percentile(distances, 98)))
    regions = sorted(judge.regions(distances > limit), key=lambda region: -int(region.sum()))
    count = len(scene.shapes)
    if len(regions) < count:
        return None

    def misfit(order: tuple[int, ...]) -> float:
        """How far the regions' pixels are from the colours of the scene's shapes, in any style."""
        total = 0.0
        for i, shape in zip(order, scene.shapes, strict=True):
            tone = styles.stripe_colour(shape.colour, scene.background)
            every = np.array([shape.colour, tone, styles.soft_colour(shape.colour)])
            away = np.linalg.norm(image[regions[i]][:, None] - every, axis=-1)
            total += float(away.min(axis=1).mean())
        return total

    best = min(itertools.permutations(range(count)), key=misfit)
    fits = [judge.fit(regions[i], s.kind)[1] for i, s in zip(best, scene.shapes, strict=True)]
    shapes = zip(fits, scene.shapes, strict=True)
    return replace(scene, shapes=tuple(replace(f, colour=s.colour) for f, s in shapes))


class Adapters:
    """Packages of the demo model and of its ControlNet, and LoRAs; a context manager."""

    def __init__(self, package: Path, controlnet: Path, loras: Path) -> None:
        self._pipe = load_pipeline(package)
        self._scale = self._pipe.package.manifest.scaling_factor
        self._controlnet = Package.load(controlnet)
        self._loras = {style: loras / f"{style}.safetensors" for style in styles.STYLES}

    def __enter__(self) -> Adapters:
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.close()

    def generate(
        self,
        cases: Sequence[Case],
        *,
        outlines: bool = True,
        style: str | None = None,
        scale: float = 1.0,
        steps: int = evaluation.STEPS,
        guidance_scale: float = GUIDANCE_SCALE,
    ) -> list[np.ndarray]:
        """One image for each case, (128, 128, 3) uint8; case number i has seed i.

        Args:
          outlines: whether the ControlNet follows those of the case's scene.
          style: of the LoRA. scale: its.
        """
        images: list[np.ndarray] = []
        for start in tqdm(range(0, len(cases), BATCH), disable=None, leave=False):
            rows = cases[start : start + BATCH]
            control = [Image.fromarray(dataset.render_outlines(case.scene)) for case in rows]
            result = self._pipe(
                [case.prompt for case in rows],
                controlnets=[ControlNet(self._controlnet, control)] if outlines else None,
                loras=[(self._loras[style], scale)] if style else None,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                scheduler=SCHEDULER,
                seed=list(range(start, start + len(rows))),
            )
            images += [np.asarray(image) for image in result.images]
        return images

    def reconstruct(self, cases: Sequence[Case]) -> list[np.ndarray]:
        """The scenes, encoded and decoded by the VAE: the most that outlines can be followed."""
        images: list[np.ndarray] = []
        for start in range(0, len(cases), BATCH):
            scenes = [dataset.render(case.scene) for case in cases[start : start + BATCH]]
            pixels = np.stack(scenes).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
            mean, _ = np.split(self._pipe.encode_image(pixels), 2, axis=1)
            images += list(self._pipe.decode(mean * np.float32(self._scale)))
        return images


def outline_figures(images: Sequence[np.ndarray], cases: Sequence[Case]) -> dict[str, float]:
    """How well images follow their scenes: the mean overlap of all cases and of each shape."""
    by_kind: dict[str, list[float]] = {kind: [] for kind in dataset.SHAPES}
    means = []
    for image, case in zip(images, cases, strict=True):
        found = overlaps(image, case.scene)
        means.append(np.mean(found))
        for share, shape in zip(found, case.scene.shapes, strict=True):
            by_kind[shape.kind].append(share)
    each = {kind: float(np.mean(shares)) for kind, shares in by_kind.items() if shares}
    return {"overlap": float(np.mean(means))} | each


def style_amounts(
    images: Sequence[np.ndarray], cases: Sequence[Case], style: str, *, placed: bool
) -> np.ndarray:
    """The amount of a style in each image.

    Args:
      placed: whether the objects are where the scenes have them; they are looked for otherwise.
    """
    amounts = []
    for image, case in zip(images, cases, strict=True):
        scene = case.scene if placed else located(image, case.scene)
        amounts.append(styles.style_amount(image, scene, style) if scene else 0.0)
    return np.array(amounts)


def style_figures(amounts: np.ndarray) -> dict[str, float]:
    """The share of images in which a style is present, and its mean amount."""
    return {"style": float(np.mean(amounts >= FULL)), "amount": float(np.mean(amounts))}


def run(adapters: Adapters, count: int) -> dict[str, Any]:
    """The figures with the ControlNet and with each LoRA alone, and with both at scales 0 to 1."""
    cases = held_out_cases(count)
    plain = adapters.generate(cases)
    guided = adapters.generate(cases, guidance_scale=evaluation.GUIDANCE_SCALE)
    report: dict[str, Any] = {
        "cases": count,
        "steps": evaluation.STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "scheduler": SCHEDULER,
        "vae": outline_figures(adapters.reconstruct(cases), cases),
        "controlnet": outline_figures(plain, cases),
        GUIDED: outline_figures(guided, cases),
    }
    for style in styles.STYLES:
        amounts = [style_amounts(plain, cases, style, placed=True)]
        report[f"{style} 0.0"] = style_figures(amounts[0])
        for scale in (0.5, 1.0):
            images = adapters.generate(cases, style=style, scale=scale)
            amounts.append(style_amounts(images, cases, style, placed=True))
            figures = outline_figures(images, cases) | style_figures(amounts[-1])
            report[f"{style} {scale}"] = figures
        none, half, full = amounts
        report[f"{style} 0.5"]["between"] = float(np.mean((none < half) & (half < full)))
        alone = adapters.generate(cases, outlines=False, style=style)
        report[f"{style} alone"] = style_figures(style_amounts(alone, cases, style, placed=False))
    return report


def passes(report: dict[str, Any]) -> bool:
    """Whether outlines are followed, and styles present at scale 1 and in between at 0.5."""
    followed = [report["controlnet"], *(report[f"{s} 1.0"] for s in styles.STYLES)]
    present = [report[f"{s} {how}"]["style"] for s in styles.STYLES for how in ("1.0", "alone")]
    amounts = [[report[f"{s} {x}"]["amount"] for x in (0.0, 0.5, 1.0)] for s in styles.STYLES]
    return (
        min(figures["overlap"] for figures in followed) >= OVERLAP_BOUND
        and min(present) >= STYLE_BOUND
        and all(none <= NONE for none, _, _ in amounts)
        and all(none + BETWEEN <= half <= full - BETWEEN for none, half, full in amounts)
    )


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m sdexport.demo_model.evaluate_adapters"
    )
    parser.add_argument("--package", type=Path, default=PACKAGE_DIR)
    parser.add_argument("--controlnet", type=Path, default=CONTROLNET_PACKAGE_DIR)
    parser.add_argument("--loras", type=Path, default=LORA_DIR)
    parser.add_argument("--cases", type=int, default=CASES)
    args = parser.parse_args()
    with Adapters(args.package, args.controlnet, args.loras) as adapters:
        report = run(adapters, args.cases)
    print(json.dumps(report, indent=2))
    if not passes(report):
        sys.exit(1)


if __name__ == "__main__":
    main()
