"""Default arguments of each family and task, compared with diffusers' signatures."""

from __future__ import annotations

import inspect

import diffusers
import pytest

from sdexport.runtime.models.families import FAMILIES

LCM = "latent-consistency"


@pytest.mark.parametrize(
    ("pipeline", "family", "image", "mask"),
    [
        ("StableDiffusionPipeline", "stable-diffusion", False, False),
        ("StableDiffusionImg2ImgPipeline", "stable-diffusion", True, False),
        ("StableDiffusionInpaintPipeline", "stable-diffusion", True, True),
        ("StableDiffusionXLPipeline", "stable-diffusion-xl", False, False),
        ("StableDiffusionXLImg2ImgPipeline", "stable-diffusion-xl", True, False),
        ("StableDiffusionXLImg2ImgPipeline", "stable-diffusion-xl-refiner", True, False),
        ("StableDiffusionXLInpaintPipeline", "stable-diffusion-xl", True, True),
        ("LatentConsistencyModelPipeline", LCM, False, False),
        ("LatentConsistencyModelImg2ImgPipeline", LCM, True, False),
    ],
)
def test_defaults_are_those_of_diffusers(
    pipeline: str, family: str, image: bool, mask: bool
) -> None:
    theirs = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    ours = FAMILIES[family].defaults(image=image, mask=mask)
    for name, value in vars(ours).items():
        assert (name in theirs) == (value is not None), name
        assert value is None or value == theirs[name].default, name


def test_every_pipeline_of_a_family_exists_in_diffusers() -> None:
    names = {name for family in FAMILIES.values() for name in family.pipelines}
    assert all(hasattr(diffusers, name) for name in names)
