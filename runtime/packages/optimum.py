"""Folders that Optimum exported: what a manifest would say, from their configurations."""

from __future__ import annotations

from pathlib import Path

from sdexport.engines.errors import PackageError
from sdexport.runtime.packages.manifest import (
    COMPONENTS,
    Component,
    Manifest,
    family_name,
    read_json,
)


def manifest_of_optimum(folder: Path) -> Manifest:
    """What the folder's configurations say, for a package without manifest."""
    unet = read_json(folder, "unet/config.json")
    vae = read_json(folder, "vae_decoder/config.json")
    scheduler = read_json(folder, "scheduler/scheduler_config.json")
    names = [name for name in COMPONENTS if (folder / name / "model.onnx").is_file()]
    try:
        downscale = 2 ** (len(vae.get("block_out_channels") or (0, 0, 0, 0)) - 1)
        side = unet.get("sample_size") or 64
        height, width = (side, side) if isinstance(side, int) else side
        latent_channels = int(vae.get("latent_channels") or 4)
        scaling_factor = float(vae.get("scaling_factor") or 0.18215)
        default_size = (int(height) * downscale, int(width) * downscale)
        if min(latent_channels, scaling_factor, *default_size) <= 0:
            raise ValueError("sizes must be positive")
        family = family_name(unet, names, latent_channels)
    except (TypeError, ValueError) as error:
        raise PackageError(f"{folder}: unet or vae_decoder config.json: {error}") from error
    return Manifest(
        family=family,
        source={"type": "optimum"},
        latent_channels=latent_channels,
        downscale=downscale,
        scaling_factor=scaling_factor,
        default_size=default_size,
        prediction_type=str(scheduler.get("prediction_type", "epsilon")),
        components={name: Component((), "unknown", 0, (), ()) for name in names},
        files=(),
        tools={},
    )
