"""Which configurations can be exported: those whose components fit together in a known way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sdexport.engines.errors import CheckpointError
from sdexport.runtime.models import families
from sdexport.runtime.models.components import UNET, VAE_DECODER


def check_components(folder: Path, configs: Mapping[str, SimpleNamespace]) -> None:
    """Raises: CheckpointError: names the first expectation that the configurations fail."""
    unet, vae = configs[UNET.source], configs[VAE_DECODER.source]
    sides = unet.sample_size if isinstance(unet.sample_size, list) else [unet.sample_size]
    expectations = {
        "a vae.scaling_factor of 0 to 1000": _is_number(vae.scaling_factor, 1000),
        "a unet.sample_size of 1 to 10000, or two of them": len(sides) in (1, 2)
        and all(
            side is None or (isinstance(side, int) and _is_number(side, 10_000)) for side in sides
        ),
    }
    hidden = getattr(unet, "encoder_hid_dim_type", None)
    expectations["a unet without another projection of its encoder_hidden_states"] = not hidden
    failed = families.family_of_configs(configs).unmet_expectations(configs)
    failed += [name for name, holds in expectations.items() if not holds]
    if failed:
        raise CheckpointError(f"{folder}: not a supported checkpoint; expected {failed[0]}")


def _is_number(value: Any, largest: int) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and bool(0 < value <= largest)
