"""The scheduler that a checkpoint names: known, replaced with a warning, or of another model."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdexport.engines.errors import CheckpointError
from sdexport.engines.messages import one_line
from sdexport.runtime import schedulers
from sdexport.runtime.adapters.damaged_files import parsing
from sdexport.runtime.scheduler_argument import default_scheduler
from sdexport.runtime.schedulers.program_names import OTHER_MODELS
from sdexport.runtime.schedulers.sampler_names import why_not_supported

logger = logging.getLogger(__name__)

_OTHER_MODELS = re.compile(r"Flow|EDM|ConsistencyModel|CMStochastic|V[ep]Scheduler")
"""Names of classes that sdexport does not know but whose models it cannot run."""
_CLASS = "_class_name"
_UPDATES: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"steps_offset": 1, "clip_sample": False},
    "StableDiffusionImg2ImgPipeline": {"steps_offset": 1, "clip_sample": False},
    "StableDiffusionInpaintPipeline": {"steps_offset": 1, "skip_prk_steps": True},
}
"""What diffusers' pipelines change in the scheduler's configuration when they are loaded, because
configurations of 2022 lack it. By class of the pipeline; 0.42's constructors are the source."""


def supported_scheduler(
    folder: Path, index: Mapping[str, Any], config: Mapping[str, Any], *, warns: bool
) -> dict[str, Any]:
    """The configuration of the scheduler, with the class and the values that diffusers would use.

    Args:
      index: the content of model_index.json, whose class comes before that of `config`.
      warns: whether a class that is replaced, or two different ones, are warned about.
    Raises: CheckpointError: a scheduler of another kind of model; or the runtime cannot create one
      from this configuration.
    """
    named, own = _class_in(index.get("scheduler")), config.get(_CLASS)
    name = str(named or own or "")
    _check_model(folder, name)
    config = {**config, **_UPDATES.get(str(index.get(_CLASS)), {})}
    if warns and named and own and named != own:
        logger.warning(
            "%s: model_index.json names the scheduler %s, scheduler_config.json %s; the "
            "first is used, as in diffusers",
            folder,
            one_line(named, 60),
            one_line(str(own), 60),
        )
    with parsing(f"{folder}: scheduler/scheduler_config.json"):
        chosen = default_scheduler({_CLASS: name})
        schedulers.create(chosen, {**config, _CLASS: name}, 4)
    if warns and schedulers.canonical_name(name) is None:
        logger.warning(
            "%s: the scheduler %s is not supported; images are generated with %s instead, and "
            "differ from those of the checkpoint; choose another one with --scheduler",
            folder,
            one_line(name, 60) if name else "is not named, so it",
            schedulers.class_name(chosen),
        )
    return {**config, _CLASS: name} if name else config


def _class_in(entry: object) -> str | None:
    named = entry[-1] if isinstance(entry, list) and len(entry) == 2 else None
    return named if isinstance(named, str) else None


def _check_model(folder: Path, name: str) -> None:
    """Raise CheckpointError if the class is for models that no scheduler here is made for."""
    if schedulers.canonical_name(name) is not None:
        return
    reason = why_not_supported(name)
    if reason is not None and reason[1] in OTHER_MODELS:
        why = reason[1]
    elif reason is None and _OTHER_MODELS.search(name):
        why = "by its name it is for another kind of model than Stable Diffusion"
    else:
        return
    raise CheckpointError(
        f"{folder}: the scheduler {one_line(name, 60)} is not supported: {why}, so no other one "
        "can take its place"
    )
