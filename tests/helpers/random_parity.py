"""One random call by our pipeline and by diffusers', and how they compare."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sdexport import TorchGenerator
from tests.helpers.diffusers_schedulers import brownian_from, twin_class
from tests.helpers.family_pipelines import Both
from tests.helpers.random_calls import RandomCall
from tests.tolerances import IMAGE_ABS


@dataclass(frozen=True)
class Outcome:
    """kind: "images", "both reject", "we reject" or "diffusers rejects"."""

    call: RandomCall
    kind: str
    difference: int = 0
    message: str = ""

    @property
    def is_failure(self) -> bool:
        return self.difference > IMAGE_ABS or self.kind in ("we reject", "diffusers rejects")

    def __str__(self) -> str:
        what = f"{self.difference} of 255" if self.kind == "images" else self.kind
        return f"{self.call}\n  -> {what} {self.message}"


def compare_call(both: Both, call: RandomCall) -> Outcome:
    """Run a call in both pipelines."""
    theirs, their_error = _attempt(_theirs, both, call)
    ours, our_error = _attempt(_ours, both, call)
    message = f"ours: {our_error!r}; diffusers: {their_error!r}"[:900]
    if theirs is None and ours is None:
        return Outcome(call, "both reject", message=message)
    if theirs is None or ours is None:
        kind = "diffusers rejects" if theirs is None else "we reject"
        return Outcome(call, kind, message=message)
    if theirs.shape != ours.shape:
        return Outcome(call, "images", 255, f"shapes {ours.shape} and {theirs.shape}")
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    flat = "" if np.ptp(theirs) > 20 else "flat"
    return Outcome(call, "images", int(difference.max()), flat)


def _attempt(run: Any, both: Both, call: RandomCall) -> tuple[np.ndarray | None, Exception | None]:
    try:
        return run(both, call), None
    except Exception as error:  # noqa: BLE001  whatever diffusers rejects a call with
        return None, error


def _theirs(both: Both, call: RandomCall) -> np.ndarray:
    pipeline = both.theirs(call.task)
    seeds = call.seeds if isinstance(call.seeds, list) else [call.seeds]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated uses inside of diffusers itself
        config = {**both.ours.package.scheduler_config, **call.config}
        pipeline.scheduler = twin_class(call.scheduler).from_config(config)
        with brownian_from(call.scheduler, generators[0]):
            result = pipeline(
                generator=generators if isinstance(call.seeds, list) else generators[0],
                output_type="np",
                **call.arguments,
                **call.image_arguments(),
                **call.callback_arguments(),
            )
    images: np.ndarray = result.images
    if not np.isfinite(images).all():
        raise ValueError("NaN in the images")
    return (images * 255).round().astype(np.uint8)


def _ours(both: Both, call: RandomCall) -> np.ndarray:
    config = {**both.ours.package.scheduler_config, **call.config}
    config["_class_name"] = twin_class(call.scheduler).__name__
    pipe = both.ours_with(config)
    if isinstance(call.seeds, list):
        noise: dict[str, Any] = {"generator": [TorchGenerator(seed) for seed in call.seeds]}
    elif call.number % 2:
        noise = {"seed": call.seeds}
    else:
        noise = {"generator": TorchGenerator(call.seeds)}
    arguments = {**call.arguments, **call.image_arguments(), **call.callback_arguments()}
    images = pipe(output_type="np", **noise, **arguments).images
    return (images * 255).round().astype(np.uint8)


logging.getLogger("diffusers").setLevel(logging.ERROR)
