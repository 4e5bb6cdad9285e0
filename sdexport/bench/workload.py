"""What is timed: sizes, inputs of the components, and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.runtime.packages.package import Package

PROMPT = "a photograph of an astronaut riding a horse"


@dataclass(frozen=True)
class Work:
    """How large the images are, and how often each component and a whole image are timed.

    width, height: in pixels.
    repeats: timed runs of each, after one warm-up.
    """

    width: int
    height: int
    num_inference_steps: int = 5
    guidance_scale: float = 7.5
    batch: int = 1
    repeats: int = 5
    scheduler: str | None = None


def feeds(inputs: Sequence[Any], package: Package, work: Work) -> dict[str, np.ndarray]:
    """Seeded random arrays for the inputs of a component, as for an image with guidance.

    Args:
      inputs: for each input (name, dtype, shape), with names for dynamic dimensions.
    """
    unit, rng = package.manifest.downscale, np.random.default_rng(0)
    guided = any(name == "encoder_hidden_states" for name, _, _ in inputs)
    latent = {"height": work.height // unit, "width": work.width // unit}
    sizes = {"batch": work.batch * (2 if guided else 1), "sequence": 77, **latent}
    found = {}
    for name, dtype, shape in inputs:
        dims = [d if isinstance(d, int) else sizes.get(d, 1) for d in shape]
        if name == "timestep":
            found[name] = np.full(dims, 500, dtype)
        elif np.issubdtype(np.dtype(dtype), np.integer):
            found[name] = rng.integers(0, 400, dims, dtype=dtype)
        else:
            found[name] = rng.standard_normal(dims).astype(dtype)
    return found


def prompt_components(package: Package) -> list[str]:
    """The components of a package that generate an image from a prompt."""
    used = package.family.prompt_components
    return [name for name in used if name in package.manifest.components]


def feeds_for(folder: Path, width: int, height: int) -> dict[str, dict[str, np.ndarray]]:
    """`feeds` for every component that generates an image from a prompt.

    Args:
      folder: the package. width, height: in pixels.
    """
    package = Package.load(folder, verify=False)
    work = Work(width, height)
    found = {}
    for name in prompt_components(package):
        inputs, _ = graph_specs(package.model_path(name))
        found[name] = feeds([(s.name, s.dtype, s.shape) for s in inputs], package, work)
    return found


def prompt_of(i: int) -> str:
    """The prompt of run number i: a new one each time, because the pipeline caches embeddings."""
    return f"{PROMPT}, number {i}"
