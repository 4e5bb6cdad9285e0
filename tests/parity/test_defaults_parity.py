"""What is taken for arguments that are not given, against diffusers' signatures."""

from __future__ import annotations

import inspect

import diffusers
import pytest

from sdexport.runtime.models.defaults import defaults


@pytest.mark.parametrize(
    ("pipeline", "kind"),
    [
        ("StableDiffusionPipeline", {}),
        ("StableDiffusionImg2ImgPipeline", {"image": True}),
        ("StableDiffusionInpaintPipeline", {"image": True, "mask": True}),
        ("StableDiffusionXLPipeline", {"xl": True}),
        ("StableDiffusionXLImg2ImgPipeline", {"xl": True, "image": True}),
        ("StableDiffusionXLInpaintPipeline", {"xl": True, "image": True, "mask": True}),
        ("LatentConsistencyModelPipeline", {"told_scale": True}),
        ("LatentConsistencyModelImg2ImgPipeline", {"told_scale": True, "image": True}),
    ],
)
def test_defaults_are_those_of_diffusers(pipeline: str, kind: dict[str, bool]) -> None:
    theirs = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    ours = defaults(**({"xl": False, "told_scale": False, "image": False, "mask": False} | kind))
    for name, value in vars(ours).items():
        assert (name in theirs) == (value is not None), name
        assert value is None or value == theirs[name].default, name
