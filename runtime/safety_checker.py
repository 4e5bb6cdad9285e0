"""The safety checker of SD 1: which images show what their checkpoint's authors meant to keep out.

The package's graph gives the cosines of an image's CLIP embedding with those of unnamed concepts.
What follows here is that of diffusers' StableDiffusionSafetyChecker.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sdexport.engines import Session
from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.guarded_files import parsing
from sdexport.runtime import checks
from sdexport.runtime.component_sessions import chunks, finite
from sdexport.runtime.images.clip_image import ClipImageProcessor
from sdexport.runtime.models.components import CONCEPTS, SAFETY_CHECKER, SPECIAL_CARE
from sdexport.runtime.packages.listed_files import PREPROCESSOR_CONFIG
from sdexport.runtime.packages.package import Package

THRESHOLDS = {CONCEPTS: "concept_thresholds", SPECIAL_CARE: "special_care_thresholds"}
"""Keys of a safety checker's config.json: the cosine from which on each concept is found."""
_ADJUSTMENT = np.float32(0.01)
"""Added to every score after a concept of special care was found."""
_DECIMALS = 3
_log = logging.getLogger(__name__)


class SafetyChecker:
    """Finds the images that a package's safety checker flags.

    Args:
      package: one that holds a safety checker.
      session: returns the open session of a component.
    Raises: PackageError: the configuration is damaged, or does not fit the graph.
    """

    def __init__(
        self, package: Package, session: Callable[[str], Session], max_batch: int | None = None
    ) -> None:
        self._session, self._max_batch = session, max_batch
        name = SAFETY_CHECKER.name
        config = package.config(name)
        with parsing(PackageError, f"{package.folder}: {name}/config.json"):
            self._thresholds = {out: _numbers(config, key) for out, key in THRESHOLDS.items()}
        with parsing(PackageError, f"{package.folder}: {name}/{PREPROCESSOR_CONFIG}"):
            values = package.config(name, PREPROCESSOR_CONFIG)
            self._processor = ClipImageProcessor.from_config(values)

    def flagged_concepts(self, pixels: np.ndarray) -> list[tuple[int, ...]]:
        """The numbers of the concepts that each image shows; empty for those that may be shown.

        Args:
          pixels: (B, H, W, 3) uint8.
        Raises: EngineError: the graph failed, or its output is not finite. PackageError: the
          configuration does not fit the graph.
        """
        found: list[tuple[int, ...]] = []
        for rows in chunks(len(pixels), self._max_batch):
            images = [Image.fromarray(each) for each in pixels[rows]]
            clip_input = self._processor(images)
            session = self._session(SAFETY_CHECKER.name)
            self._check_shapes(session, clip_input)
            cosines = session.run({"clip_input": clip_input})
            for name in THRESHOLDS:
                finite(cosines[name], SAFETY_CHECKER.name, "the image's safety")
            found += map(self._concepts, cosines[SPECIAL_CARE], cosines[CONCEPTS])
        return found

    def _concepts(self, special_care: np.ndarray, concepts: np.ndarray) -> tuple[int, ...]:
        """The concepts of one image, from its cosines."""
        adjustment = np.float32(0)
        for cosine, threshold in zip(special_care, self._thresholds[SPECIAL_CARE], strict=True):
            if _score(cosine, threshold, adjustment) > 0:
                adjustment = _ADJUSTMENT
        scores = _score(concepts, self._thresholds[CONCEPTS], adjustment)
        return tuple(np.flatnonzero(scores > 0).tolist())

    def _check_shapes(self, session: Session, clip_input: np.ndarray) -> None:
        wanted = {spec.name: spec.shape[1:] for spec in (*session.inputs, *session.outputs)}
        found = {"clip_input": clip_input.shape[1:]}
        found |= {name: values.shape for name, values in self._thresholds.items()}
        for name, shape in found.items():
            pairs = zip(shape, wanted[name], strict=False)
            same = all(isinstance(size, str) or side == size for side, size in pairs)
            if len(shape) != len(wanted[name]) or not same:
                raise PackageError(
                    f"{SAFETY_CHECKER.name}: {name} is {wanted[name]} in the graph, and {shape} in "
                    "its configuration"
                )


def safety_of_call(
    package: Package,
    session: Callable[[str], Session],
    max_batch: int | None,
    safety: object,
    output_type: str,
) -> SafetyChecker | None:
    """The safety checker of a pipeline call; None if it asks for none.

    Raises: InvalidArgumentError: `safety` is no bool, or there are no pixels to check.
      PackageError: the package holds no safety checker.
    """
    if not checks.boolean("safety", safety):
        return None
    if output_type == "latent":
        raise InvalidArgumentError("safety needs pixels; leave output_type out")
    if SAFETY_CHECKER.name not in package.manifest.components:
        why = f"models of the family {package.family.name} have none"
        if package.family.safety_checker:
            why = "its checkpoint had none, or it was exported with --no-safety-checker"
        raise PackageError(f"safety: {package.folder} holds no safety checker: {why}")
    return SafetyChecker(package, session, max_batch)


def blacked_out(
    decoded: np.ndarray, checker: SafetyChecker | None
) -> tuple[np.ndarray, list[bool] | None]:
    """Images with black ones in place of those that are flagged, and which those are.

    Args:
      decoded: (B, H, W, 3), uint8 or float32 in 0..1; changed in place.
      checker: None flags nothing, and gives no verdicts.
    """
    if checker is None:
        return decoded, None
    levels = decoded if decoded.dtype == np.uint8 else np.rint(decoded * 255).astype(np.uint8)
    concepts = checker.flagged_concepts(levels)
    for i, numbers in enumerate(concepts):
        if numbers:
            decoded[i] = 0
            _log.warning("%s", _message(i, len(concepts), numbers))
    return decoded, list(map(bool, concepts))


def _message(index: int, count: int, concepts: Sequence[int]) -> str:
    which = f"image {index + 1} of {count}" if count > 1 else "the image"
    numbers = ", ".join(map(str, concepts))
    return (
        f"{which} is black: the safety checker found content that is not safe for work (concept "
        f"{numbers}); try another prompt or seed"
    )


def _score(cosine: Any, threshold: Any, adjustment: np.float32) -> Any:
    """How far above the threshold, rounded as in diffusers; all in float32."""
    return np.round(cosine - threshold + adjustment, _DECIMALS)


def _numbers(config: Mapping[str, Any], key: str) -> np.ndarray:
    """(n,) float32."""
    values = [float(value) for value in config[key]]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"{key} must hold finite numbers")
    return np.array(values, np.float32)
