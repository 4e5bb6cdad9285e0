"""Which configurations can be exported: those whose components fit together in a known way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sdexport.checkpoints.config_files import parsing
from sdexport.checkpoints.diffusers_layout import text_encoders_of
from sdexport.engines.errors import CheckpointError
from sdexport.runtime import schedulers
from sdexport.runtime.pipeline import DEFAULT_SCHEDULER


def check_components(folder: Path, configs: Mapping[str, SimpleNamespace]) -> None:
    """Raises: CheckpointError: names the first expectation that the configurations fail."""
    unet, vae = configs["unet"], configs["vae"]
    width = sum(configs[part].hidden_size for part in text_encoders_of(configs))
    xl = "text_encoder_2" in configs
    latent = vae.latent_channels
    expectations = {
        "unet.in_channels to be vae.latent_channels, or twice that and one for inpainting": (
            unet.in_channels in (latent, 2 * latent + 1)
        ),
        "unet.cross_attention_dim to be text_encoder.hidden_size": (
            unet.cross_attention_dim == width
        ),
        "a unet without class conditioning": not unet.class_embed_type
        and not unet.num_class_embeds,
        "a unet with text and time conditioning (addition_embed_type) exactly if there is a "
        "text_encoder_2": unet.addition_embed_type == ("text_time" if xl else None),
        "a vae without latents_mean, latents_std and shift_factor": not any(
            getattr(vae, key, None) for key in ("latents_mean", "latents_std", "shift_factor")
        ),
    }
    expectations["a vae.scaling_factor of 0 to 1000"] = _is_number(vae.scaling_factor, 1000)
    sides = unet.sample_size if isinstance(unet.sample_size, list) else [unet.sample_size]
    expectations["a unet.sample_size of 1 to 10000, or two of them"] = len(sides) in (1, 2) and all(
        side is None or (isinstance(side, int) and _is_number(side, 10_000)) for side in sides
    )
    failed = [name for name, holds in expectations.items() if not holds]
    if failed:
        raise CheckpointError(f"{folder}: not a supported checkpoint; expected {failed[0]}")


def _is_number(value: Any, largest: int) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and bool(0 < value <= largest)


def check_scheduler(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises: CheckpointError: the runtime cannot create a scheduler from this configuration."""
    name = schedulers.canonical_name(str(config.get("_class_name", ""))) or DEFAULT_SCHEDULER
    with parsing(f"{folder}: scheduler/scheduler_config.json"):
        schedulers.create(name, config, 4)
