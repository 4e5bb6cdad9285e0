"""Our pipelines and diffusers' over the modules of the same small random checkpoint."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch

from sdexport import Pipeline
from tests.helpers.pipeline_over_torch import over_torch

TASKS = ("text", "image", "inpaint")
_CLASSES = {"text": "{}Pipeline", "image": "{}Img2ImgPipeline", "inpaint": "{}InpaintPipeline"}


def over_diffusers(folder: Path) -> Any:
    """diffusers' pipeline of a checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    encoder = getattr(pipeline, "text_encoder", None)
    if encoder is not None and not hasattr(encoder, "text_model"):
        # diffusers 0.42 uses it for clip_skip; transformers 5 has no such attribute
        type(encoder).text_model = property(lambda self: self)
    return pipeline


@dataclass(frozen=True)
class Both:
    """The pipelines of one checkpoint."""

    folder: Path

    @cached_property
    def ours(self) -> Pipeline:
        return over_torch(self.folder)

    @cached_property
    def base(self) -> Any:
        """diffusers' pipeline that the checkpoint names."""
        return over_diffusers(self.folder)

    def ours_with(self, scheduler_config: dict[str, Any]) -> Pipeline:
        """Our pipeline with another scheduler_config.json over the same sessions."""
        ours = self.ours
        sessions: Any = {name: ours.session(name) for name in ours.package.manifest.components}
        package = replace(ours.package, scheduler_config=scheduler_config)
        return Pipeline(package, sessions=sessions)

    def theirs(self, task: str) -> Any:
        """diffusers' pipeline for one of TASKS over the same modules."""
        name, config = type(self.base).__name__, self.base.config
        xl = "XL" in name
        if "LatentConsistency" in name and task != "inpaint":
            class_ = "LatentConsistencyModel{}"
        else:
            class_ = "StableDiffusionXL{}" if xl else "StableDiffusion{}"
        suffix = _CLASSES[task].format("")
        options: dict[str, Any] = {"requires_safety_checker": False}
        if xl:
            keys = ["force_zeros_for_empty_prompt"]
            keys += ["requires_aesthetics_score"] if task != "text" else []
            options = {key: config[key] for key in keys if key in config}
            options["add_watermarker"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = getattr(diffusers, class_.format(suffix))(**self.base.components, **options)
        made.set_progress_bar_config(disable=True)
        return made
