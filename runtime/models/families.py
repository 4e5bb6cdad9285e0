"""Every model family by name, and which family a checkpoint or a package belongs to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from sdexport.engines.errors import PackageError
from sdexport.runtime.models.components import UNET, VAE_DECODER, ComponentSpec, Role
from sdexport.runtime.models.conditioning import Configs
from sdexport.runtime.models.controlnet import CONTROLNET_FAMILY, CONTROLNET_XS_FAMILY
from sdexport.runtime.models.family import ModelFamily
from sdexport.runtime.models.ip_adapter import IP_FAMILY
from sdexport.runtime.models.latent_consistency import latent_consistency
from sdexport.runtime.models.stable_diffusion import STABLE_DIFFUSION
from sdexport.runtime.models.stable_diffusion_xl import (
    STABLE_DIFFUSION_XL,
    STABLE_DIFFUSION_XL_REFINER,
)
from sdexport.runtime.models.t2i_adapter import T2I_FAMILY


def _variants(base: ModelFamily) -> Iterator[ModelFamily]:
    for family in (base, latent_consistency(base)):
        yield family
        yield replace(family, name=f"{family.name}-inpainting", masked_input=True)


FAMILIES: dict[str, ModelFamily] = {
    family.name: family
    for base in (STABLE_DIFFUSION, STABLE_DIFFUSION_XL, STABLE_DIFFUSION_XL_REFINER)
    for family in _variants(base)
}
ADAPTER_FAMILIES: dict[str, ModelFamily] = {
    family.name: family
    for family in (CONTROLNET_XS_FAMILY, CONTROLNET_FAMILY, T2I_FAMILY, IP_FAMILY)
}
"""Of packages that hold an adapter instead of a model."""


def family_named(name: str) -> ModelFamily:
    """Raises: PackageError: a family that this version does not know."""
    known = FAMILIES | ADAPTER_FAMILIES
    if name not in known:
        raise PackageError(
            f"the model family '{name:.60}' is unknown to this sdexport, which knows "
            f"{', '.join(known)}; update sdexport"
        )
    return known[name]


def family_of(
    denoiser: Mapping[str, Any], sources: Collection[str], latent_channels: int
) -> ModelFamily:
    """The family of a checkpoint or of a folder that Optimum exported.

    Args:
      denoiser: its configuration.
      sources: the folders that are there; those of text encoders count.
      latent_channels: of the VAE.
    Raises: PackageError: none has these text encoders.
    """
    present = {spec.source for spec in text_encoders()} & set(sources)
    guidance_embedding = bool(denoiser.get("time_cond_proj_dim"))
    masked = int(denoiser.get("in_channels") or latent_channels) > latent_channels
    for family in FAMILIES.values():
        same_encoders = {spec.source for spec in family.text_encoders} == present
        traits = family.guidance_embedding, family.masked_input
        if same_encoders and traits == (guidance_embedding, masked):
            return family
    raise PackageError(f"no model family has the text encoders {', '.join(sorted(present)) or '-'}")


def family_of_configs(configs: Configs) -> ModelFamily:
    """The family of a diffusers checkpoint, from its configurations by folder; see `family_of`."""
    latent_channels = configs[VAE_DECODER.source].latent_channels
    return family_of(vars(configs[UNET.source]), configs, latent_channels)


def components() -> dict[str, ComponentSpec]:
    """Every component of any family, adapters included, by name, in the order of a pipeline."""
    return {**_components(FAMILIES), **adapter_components()}


def adapter_components() -> dict[str, ComponentSpec]:
    """Every component of any adapter, by name."""
    return _components(ADAPTER_FAMILIES)


def _components(families: Mapping[str, ModelFamily]) -> dict[str, ComponentSpec]:
    found = {spec.name: spec for family in families.values() for spec in family.components}
    order = list(Role)
    return dict(sorted(found.items(), key=lambda item: order.index(item[1].role)))


def source_classes() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Library and class names by folder of a diffusers checkpoint, in the order of a pipeline."""
    return {spec.source: spec.classes for spec in _components(FAMILIES).values()}


def text_encoders() -> tuple[ComponentSpec, ...]:
    """Every text encoder of any family."""
    encoders = (spec for family in FAMILIES.values() for spec in family.text_encoders)
    return tuple(dict.fromkeys(encoders))


def pipelines() -> tuple[str, ...]:
    """The class names of diffusers' pipelines whose checkpoints can be exported."""
    return tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.pipelines))


def full_precision_inputs() -> frozenset[str]:
    """Conditioning inputs of any family that stay float32 in graphs of lower precision."""
    inputs = (each for family in FAMILIES.values() for each in family.conditioning)
    return frozenset(each.name for each in inputs if each.full_precision)
