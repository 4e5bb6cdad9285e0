"""Folders that Optimum exported: their manifest, from their configurations."""

from __future__ import annotations

from pathlib import Path

from sdexport.engines.errors import PackageError
from sdexport.engines.guarded_files import parsing
from sdexport.runtime.models.components import UNET, VAE_DECODER
from sdexport.runtime.models.families import components, family_of
from sdexport.runtime.models.latent_space import latent_size_of, latent_space_of
from sdexport.runtime.packages.manifest import ComponentRecord, Manifest, read_json


def manifest_of_optimum(folder: Path) -> Manifest:
    """The manifest of a folder without one; it lists no files and no hashes.

    Raises: PackageError: a configuration is missing or damaged, or the family is unknown.
    """
    unet = read_json(folder, f"{UNET.name}/config.json")
    vae = read_json(folder, f"{VAE_DECODER.name}/config.json")
    scheduler = read_json(folder, "scheduler/scheduler_config.json")
    present = [
        name
        for name, spec in components().items()
        if not spec.optional and (folder / name / "model.onnx").is_file()
    ]
    configs = f"{folder}: {UNET.name} or {VAE_DECODER.name} config.json"
    with parsing(PackageError, configs):
        space = latent_space_of(vae)
        downscale, latent_channels = space.downscale, space.channels
        height, width = latent_size_of(unet)
        default_size = (height * downscale, width * downscale)
        if min(latent_channels, space.scaling_factor, *default_size) <= 0:
            raise ValueError("sizes must be positive")
        try:
            family = family_of(unet, present, latent_channels)
        except PackageError as error:
            raise PackageError(f"{folder}: {error}") from error
    return Manifest(
        family=family.name,
        source={"type": "optimum"},
        latent_channels=latent_channels,
        downscale=downscale,
        scaling_factor=space.scaling_factor,
        latents_mean=space.mean if family.normalised_latents else None,
        latents_std=space.std if family.normalised_latents else None,
        default_size=default_size,
        prediction_type=str(scheduler.get("prediction_type", "epsilon")),
        components={name: ComponentRecord((), "unknown", 0, (), ()) for name in present},
        files=(),
        tools={},
    )
