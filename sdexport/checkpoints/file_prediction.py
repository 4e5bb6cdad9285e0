"""What the UNet of a single file predicts and how its timesteps are spaced, as the file says it.

A file says so by tensors that mark it (ComfyUI), by metadata (the model specification of Stability
AI, which kohya and ComfyUI write too), by the training step it was saved at, or not at all.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sdexport.checkpoints.published_configs import (
    EDM_DPM_SOLVER,
    EDM_EULER,
    PLAYGROUND_SCALING_FACTOR,
    SingleFileFamily,
)
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError, InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.schedulers.noise_schedules import SPACINGS, alphas_cumprod
from sdexport.runtime.schedulers.scheduler_config import PREDICTION_TYPES, SchedulerConfig

logger = logging.getLogger(__name__)

_EDM_MARKS = frozenset({"edm_vpred.sigma_max", "edm_vpred.sigma_min", "edm_mean", "edm_std"})
MARKS = _EDM_MARKS | {"v_pred", "ztsnr"}
"""Tensors that are no weights: they say what the UNet predicts, or how latents are normalised."""

_BASE_SIZE = 64
"""Latents per side that SD 2's epsilon model was trained on."""
_BASE_STEP = 875_000
"""The training step of SD 2's epsilon model, by which diffusers recognises it."""
_PREDICTION_KEYS = ("modelspec.predict_key", "modelspec.prediction_type")
_PREDICTION_NAMES = {
    **dict.fromkeys(("epsilon", "eps", "noise"), "epsilon"),
    **dict.fromkeys(("v", "vpred", "v_pred", "v_prediction", "velocity"), "v_prediction"),
    **dict.fromkeys(("sample", "x0"), "sample"),
}
_ARCHITECTURES = {
    "stable-diffusion-v2-768-v": "v_prediction",
    "stable-diffusion-v2-512": "epsilon",
}
_NAMES = ("modelspec.title", "modelspec.architecture")
_FEW_STEPS = re.compile(r"turbo|lightning|hyper(?![-_ ]?real)", re.IGNORECASE)
_LCM = re.compile(r"(^|[^a-z])lcm([^a-z]|$)", re.IGNORECASE)
_PREDICTS_V = re.compile(r"v[-_ ]?pred", re.IGNORECASE)
_SCHEDULE_REL, _SCHEDULE_ABS = 2**-8, 1e-6
"""Largest difference of a file's alphas_cumprod, possibly in bfloat16, from a schedule."""


def check_prediction_type(prediction_type: str | None) -> None:
    """Raises: InvalidArgumentError: neither None nor one of PREDICTION_TYPES."""
    _check("prediction type", prediction_type, PREDICTION_TYPES)


def check_timestep_spacing(timestep_spacing: str | None) -> None:
    """Raises: InvalidArgumentError: neither None nor one of SPACINGS."""
    _check("timestep spacing", timestep_spacing, SPACINGS)


def _check(what: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value not in (None, *allowed):
        listed = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
        raise InvalidArgumentError(f"{what} must be {listed}, got {shown(value)}")


def with_prediction(
    file: WeightFile, family: SingleFileFamily, chosen: str | None
) -> SingleFileFamily:
    """Prediction type, noise schedule and size, where they differ from the family's.

    Args:
      chosen: the prediction type, if the user gave one.
    Raises: CheckpointError: a scheduling that the runtime does not have.
    """
    edm = _edm_family(file, family)
    if edm is not None:
        changed = {"prediction_type": chosen} if chosen else {}
        return replace(edm, scheduler={**edm.scheduler, **changed})
    stated = _stated(file)
    named = (file.metadata.get(key, "") for key in _NAMES)
    few_steps = any(map(_FEW_STEPS.search, named))
    default = family.scheduler["prediction_type"]
    if default == "v_prediction" and (family.unet["in_channels"] != 4 or few_steps):
        default = "epsilon"  # the published SD 2 for inpainting, and SD Turbo
    elif default == "v_prediction" and not (chosen or stated):
        logger.warning(
            "%s: assumed to be the SD 2 of 768 pixels, which predicts v; "
            "for the one of 512 give --prediction-type epsilon",
            file.path,
        )
    prediction = chosen or stated or default
    scheduler = {**family.scheduler, "prediction_type": prediction}
    if few_steps:
        scheduler["timestep_spacing"] = "trailing"
    if "ztsnr" in file.tensors or _has_zero_snr(file, scheduler):
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    unet = dict(family.unet)
    if family.scheduler["prediction_type"] != "epsilon" and prediction == "epsilon":
        unet["sample_size"] = _BASE_SIZE
    return replace(family, scheduler=scheduler, unet=unet)


def warn_about_name(
    file: WeightFile, scheduler: Mapping[str, Any], *, spacing: str | None, prediction: str | None
) -> None:
    """Warn where the file's name or title says what its weights and its metadata do not.

    Args:
      scheduler: the configuration that was found for the file.
      spacing, prediction: as the user chose them.
    """
    texts = (file.path.stem, file.metadata.get("modelspec.title", ""))
    found = scheduler["prediction_type"]
    if prediction is None and found == "epsilon" and any(map(_PREDICTS_V.search, texts)):
        logger.warning(
            "%s: by its name it may predict v, but nothing in it says so; if it does, give "
            "--prediction-type v_prediction",
            file.path,
        )
    if scheduler.get("timestep_spacing") != "leading" or "LCM" in scheduler["_class_name"]:
        return
    if any(map(_LCM.search, texts)):
        logger.warning(
            "%s: by its name it is a latent consistency model: generate with --scheduler lcm",
            file.path,
        )
    elif spacing is None and any(map(_FEW_STEPS.search, texts)):
        logger.warning(
            "%s: by its name it is made for few steps; if it is, give --timestep-spacing trailing",
            file.path,
        )


def _stated(file: WeightFile) -> str | None:
    """The prediction type that the file states; a warning tells if it states two."""
    found = dict(_statements(file))
    if len(set(found.values())) > 1:
        logger.warning(
            "%s: contradicts itself: %s; %s is used, --prediction-type overrides it",
            file.path,
            ", ".join(f"{key} says {value}" for key, value in found.items()),
            next(iter(found)),
        )
    return next(iter(found.values()), None)


def _statements(file: WeightFile) -> Iterator[tuple[str, str]]:
    """What says the prediction type, and the type; the most reliable first."""
    if "v_pred" in file.tensors:
        yield "v_pred", "v_prediction"
    for key in _PREDICTION_KEYS:
        if key in file.metadata:
            value = file.metadata[key]
            name = _PREDICTION_NAMES.get(value.strip().lower().replace("-", "_"))
            if name is None:
                logger.warning(
                    "%s: metadata %s is %.40r, which is unknown; it is ignored",
                    file.path,
                    key,
                    value,
                )
            else:
                yield key, name
    if file.metadata.get("ss_v_parameterization", "").lower() == "true":
        yield "ss_v_parameterization", "v_prediction"
    architecture = file.metadata.get("modelspec.architecture", "").partition("/")[0]
    if architecture in _ARCHITECTURES:
        yield "modelspec.architecture", _ARCHITECTURES[architecture]
    if _global_step(file) == _BASE_STEP:
        yield "global_step", "epsilon"


def _global_step(file: WeightFile) -> int | None:
    content = file.content if isinstance(file.content, Mapping) else {}
    step = content.get("global_step")
    if torch.is_tensor(step) and step.numel() == 1:
        step = step.item()
    return int(step) if isinstance(step, int | float) and step == step else None


def _has_zero_snr(file: WeightFile, scheduler: Mapping[str, Any]) -> bool:
    """Whether the file's table of alphas_cumprod ends at zero signal; warns of unknown tables."""
    table = file.tensors.get("alphas_cumprod")
    if table is None or not table.is_floating_point():
        return False
    plain = SchedulerConfig.from_mapping(scheduler)
    values = table.double().flatten().numpy()
    for zero_snr in (False, True):
        expected = alphas_cumprod(plain.betas(), zero_terminal_snr=zero_snr)
        if values.shape == expected.shape and np.allclose(
            values, expected, rtol=_SCHEDULE_REL, atol=_SCHEDULE_ABS
        ):
            return zero_snr
    logger.warning(
        "%s: its alphas_cumprod are not those of its family; the family's noise schedule is used",
        file.path,
    )
    return False


def _edm_family(file: WeightFile, family: SingleFileFamily) -> SingleFileFamily | None:
    """The family with EDM scheduling, if the file is marked as CosXL or Playground v2.5."""
    marks = {name: file.tensors[name] for name in file.tensors if name in _EDM_MARKS}
    if not marks:
        return None
    playground = any(name in ("edm_mean", "edm_std") for name in marks)
    model = "Playground v2.5" if playground else "CosXL"
    if family.unet.get("addition_embed_type") != "text_time":
        raise CheckpointError(
            f"{file.path}: {', '.join(marks)} mark it as {model}, but it is {family.name}"
        )
    if playground:
        missing = [name for name in ("edm_mean", "edm_std") if name not in marks]
        if missing:
            raise CheckpointError(f"{file.path} is {model}, but {missing[0]} is missing")
        channels = family.vae["latent_channels"]
        vae = {**family.vae, "scaling_factor": PLAYGROUND_SCALING_FACTOR}
        for key, name in (("latents_mean", "edm_mean"), ("latents_std", "edm_std")):
            vae[key] = _numbers(file, name, marks[name], channels)
        return replace(family, scheduler=EDM_DPM_SOLVER, vae=vae)
    sigmas = {
        name.removeprefix("edm_vpred."): _numbers(file, name, value, 1)[0]
        for name, value in marks.items()
    }
    return replace(family, scheduler={**EDM_EULER, **sigmas})


def _numbers(file: WeightFile, name: str, value: torch.Tensor, count: int) -> list[float]:
    if value.numel() != count or not bool(torch.isfinite(value.double()).all()):
        raise CheckpointError(
            f"{file.path}: {name}: expected {count} finite numbers, got shape {tuple(value.shape)}"
        )
    return [float(f"{number:.7g}") for number in value.double().flatten().tolist()]
