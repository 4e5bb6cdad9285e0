"""How well the demo model follows its prompts: `python -m sdexport.demo_model.evaluate PACKAGE`.

Images of held-out prompts are generated and judged by image analysis. The exit status is 1 if a
figure for one object is below its bound.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from sdexport.demo_model import dataset, judge
from sdexport.runtime.pipeline import Pipeline
from sdexport.runtime.pipeline_loading import load_pipeline

EACH_BOUND, ALL_BOUND = 0.95, 0.90
SINGLES = 332
PAIRS = 128
STEPS, GUIDANCE_SCALE = 25, 5.0
BATCH = 8

Prompt = tuple[str, dataset.Single | dataset.Pair]


def held_out_singles(count: int) -> list[Prompt]:
    """Held-out combinations of one object in every wording, `count` of them, evenly spread."""
    every: list[Prompt] = [
        (dataset.single_caption(single, wording), single)
        for wording in range(len(dataset.SINGLE_WORDINGS))
        for single in dataset.all_singles(held_out=True)
    ]
    return [every[i * len(every) // count] for i in range(min(count, len(every)))]


def held_out_pairs(count: int) -> list[Prompt]:
    """Random held-out pairs, in the wordings that name the background."""
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
    """Generate an image for each prompt, and judge it.

    Args:
      prompts: number i is generated with seed i.
      keep: called with the number of each prompt, its image, and whether everything is right.
    Returns: the share of the prompts for which each attribute is right, and all of them ("all").
    """
    verdicts: list[dict[str, bool]] = []
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
            keep(len(verdicts), image, all(verdict.values()))
            verdicts.append(verdict)
    names = list(verdicts[0])
    shares = {name: float(np.mean([verdict[name] for verdict in verdicts])) for name in names}
    return shares | {"all": float(np.mean([all(verdict.values()) for verdict in verdicts]))}


def passes(shares: dict[str, float]) -> bool:
    """Whether the figures for one object reach their bounds."""
    return shares["all"] >= ALL_BOUND and all(
        share >= EACH_BOUND for name, share in shares.items() if name != "all"
    )


def run(package: Path, singles: int, pairs: int, failures: Path | None) -> dict[str, Any]:
    """Evaluate a package on held-out prompts with one and with two objects.

    Args:
      singles, pairs: how many prompts of each.
      failures: folder for the images that are wrong, and their prompts.
    """
    report: dict[str, Any] = {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE}
    prompts_of = {"single": held_out_singles(singles), "pair": held_out_pairs(pairs)}
    with load_pipeline(package) as pipeline:
        for kind, scheduler in itertools.product(prompts_of, ("lms", "ddim")):
            prompts = prompts_of[kind]
            wrong: dict[int, Image.Image] = {}

            def keep(
                index: int, image: Image.Image, passed: bool, wrong: dict[int, Image.Image] = wrong
            ) -> None:
                if not passed:
                    wrong[index] = image

            shares = evaluate(pipeline, prompts, scheduler, keep=keep)
            report[f"{kind}.{scheduler}"] = {"prompts": len(prompts)} | shares
            if failures:
                rows = [(prompts[index][0], image) for index, image in wrong.items()]
                _write_failures(failures, f"{kind}-{scheduler}", rows)
    return report


def _write_failures(folder: Path, name: str, rows: Sequence[tuple[str, Image.Image]]) -> None:
    """Write images, and a list of their prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (_, image) in enumerate(rows):
        image.save(folder / f"{name}-{number}.png")
    text = "".join(f"{number} {prompt}\n" for number, (prompt, _) in enumerate(rows))
    (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m sdexport.demo_model.evaluate"
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("--singles", type=int, default=SINGLES)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--failures", type=Path, help="folder for the images that are wrong")
    args = parser.parse_args()
    report = run(args.package, args.singles, args.pairs, args.failures)
    print(json.dumps(report, indent=2))
    if not all(passes(report[f"single.{name}"]) for name in ("lms", "ddim")):
        sys.exit(1)


if __name__ == "__main__":
    main()
