"""How well the demo model follows its prompts: `python -m sdexport.demo_model.evaluate PACKAGE`.

Held-out prompts are painted by the NumPy runtime and judged by image analysis. Exit status 1 if a
one-object figure is below its bound.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from sdexport.demo_model import dataset, judge
from sdexport.runtime.pipeline import Pipeline, load_pipeline

EACH_BOUND, ALL_BOUND = 0.95, 0.90
SINGLES = 332
PAIRS = 128
STEPS, GUIDANCE_SCALE = 25, 5.0
BATCH = 8

Prompt = tuple[str, dataset.Single | dataset.Pair]


def held_out_singles(count: int) -> list[Prompt]:
    """Every held-out combination in every wording, at most `count`, evenly spread."""
    every: list[Prompt] = [
        (dataset.single_caption(single, wording), single)
        for wording in range(len(dataset.SINGLE_WORDINGS))
        for single in dataset.all_singles(held_out=True)
    ]
    return [every[i * len(every) // count] for i in range(min(count, len(every)))]


def held_out_pairs(count: int) -> list[Prompt]:
    """Random held-out pairs, their wordings in turn; only wordings that name the background."""
    rng = np.random.default_rng(7)
    pairs = [dataset.random_pair(rng, held_out=True) for _ in range(count)]
    return [(dataset.pair_caption(pair, 1 + i % 2), pair) for i, pair in enumerate(pairs)]


def evaluate(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    scheduler: str,
    *,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    keep: Callable[[int, Image.Image, bool], None] = lambda index, image, passed: None,
) -> dict[str, float]:
    """Share of prompts for which each attribute, and all together, came out right.

    Prompt i is painted with seed i.
    """
    kept: list[dict[str, bool]] = []
    for start in tqdm(range(0, len(prompts), BATCH), desc=scheduler, disable=None, leave=False):
        rows = prompts[start : start + BATCH]
        result = pipeline(
            [prompt for prompt, _ in rows],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            seed=list(range(start, start + len(rows))),
        )
        for image, (_, wanted) in zip(result.images, rows, strict=True):
            pixels = np.asarray(image)
            if isinstance(wanted, dataset.Single):
                verdict = judge.judge_single(pixels, wanted)
            else:
                verdict = judge.judge_pair(pixels, wanted)
            keep(len(kept), image, all(verdict.values()))
            kept.append(verdict)
    names = list(kept[0])
    shares = {name: float(np.mean([verdict[name] for verdict in kept])) for name in names}
    return shares | {"all": float(np.mean([all(verdict.values()) for verdict in kept]))}


def passes(shares: dict[str, float]) -> bool:
    """Whether one-object figures reach their bounds."""
    return shares["all"] >= ALL_BOUND and all(
        share >= EACH_BOUND for name, share in shares.items() if name != "all"
    )


def run(package: Path, singles: int, pairs: int, pictures: Path | None) -> dict[str, Any]:
    """Paint and judge held-out prompts; those that fell short go to the folder `pictures`."""
    report: dict[str, Any] = {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE}
    with load_pipeline(package) as pipeline:
        for kind, prompts in (
            ("single", held_out_singles(singles)),
            ("pair", held_out_pairs(pairs)),
        ):
            for scheduler in ("lms", "ddim"):
                failures: list[tuple[str, Image.Image]] = []

                def keep(
                    index: int,
                    image: Image.Image,
                    passed: bool,
                    rows: Sequence[Prompt] = prompts,
                    failures: list[tuple[str, Image.Image]] = failures,
                ) -> None:
                    if not passed:
                        failures.append((rows[index][0], image))

                shares = evaluate(pipeline, prompts, scheduler, keep=keep)
                report[f"{kind}.{scheduler}"] = {"prompts": len(prompts)} | shares
                if pictures:
                    pictures.mkdir(parents=True, exist_ok=True)
                    for number, (_, image) in enumerate(failures):
                        image.save(pictures / f"{kind}-{scheduler}-{number}.png")
                    text = "".join(f"{n} {prompt}\n" for n, (prompt, _) in enumerate(failures))
                    (pictures / f"{kind}-{scheduler}.txt").write_text(text, encoding="utf-8")
    return report


def main() -> None:
    """Print the report; exit status 1 if a bound is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m sdexport.demo_model.evaluate"
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("--singles", type=int, default=SINGLES)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--failures", type=Path, help="folder for the pictures that fell short")
    args = parser.parse_args()
    report = run(args.package, args.singles, args.pairs, args.failures)
    print(json.dumps(report, indent=2))
    if not all(passes(report[f"single.{name}"]) for name in ("lms", "ddim")):
        sys.exit(1)


if __name__ == "__main__":
    main()
