"""Our pipeline on PyTorch's own modules: what differs from diffusers is the runtime's own error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdexport import Package, Pipeline
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.graphs.wrappers import parts
from sdexport.runtime.packages.graph_surveys import GraphSurveys
from sdexport.runtime.packages.manifest import ComponentRecord, Manifest
from sdexport.verification.reference import TorchSession


def over_torch(folder: Path) -> Pipeline:
    """Our pipeline on a checkpoint's own modules, without an export."""
    checkpoint = Checkpoint.open(folder)
    modules = {part: checkpoint.load(part) for part in checkpoint.configs}
    every = parts(checkpoint.configs)
    height, width = checkpoint.sample_size
    space = checkpoint.latent_space
    manifest = Manifest(
        family=checkpoint.family.name,
        source={},
        latent_channels=space.channels,
        downscale=space.downscale,
        scaling_factor=space.scaling_factor,
        latents_mean=space.mean,
        latents_std=space.std,
        default_size=(height * space.downscale, width * space.downscale),
        prediction_type="epsilon",
        components={part.name: ComponentRecord((), "fp32", 18, (), ()) for part in every},
        files=(),
        tools={},
    )
    package = Package(
        folder,
        manifest,
        checkpoint.scheduler_config,
        checkpoint.index,
        surveys=GraphSurveys(folder),
    )
    sessions: Any = {part.name: TorchSession(part, modules[part.source]) for part in every}
    return Pipeline(package, sessions=sessions)
