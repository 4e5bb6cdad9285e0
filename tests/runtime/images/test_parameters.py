"""Every setting that changes an image is recorded with it."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields

import numpy as np
import pytest

from sdexport import Pipeline
from sdexport.runtime.images.parameters import (
    EFFECTIVE,
    NOT_RECORDED,
    Parameters,
    recorded,
)
from sdexport.runtime.images.recorded_values import identity, plain

FIELDS = {each.name: each for each in fields(Parameters)}
ARGUMENTS = {
    name: value
    for name, value in inspect.signature(Pipeline.__call__).parameters.items()
    if name != "self" and value.kind is not value.VAR_KEYWORD
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_argument_is_recorded(name: str) -> None:
    """A new argument of a pipeline call becomes a field of Parameters of the same name and default.

    One that cannot change the image is listed in NOT_RECORDED with the reason.
    """
    if name in NOT_RECORDED:
        assert name not in FIELDS
        return
    assert name in FIELDS, f"record {name} in Parameters, or list it in NOT_RECORDED"
    if name not in EFFECTIVE:
        field = FIELDS[name]
        default = field.default_factory() if field.default is MISSING else field.default  # type: ignore[misc]
        assert default == ARGUMENTS[name].default, f"another default for {name}"


def test_not_recorded_lists_arguments_only() -> None:
    assert NOT_RECORDED.keys() <= ARGUMENTS.keys()


def test_settings_of_the_pipeline_are_recorded(pipe: Pipeline) -> None:
    names = set(inspect.signature(Pipeline.__init__).parameters)
    # these change nothing, or what is recorded itself: the backend, the LoRAs
    names -= {"self", "package", "sessions", "low_memory", "expected_images", "lora_dir"}
    assert names <= FIELDS.keys()
    assert pipe.settings.keys() <= FIELDS.keys()


def test_plain_values_and_others() -> None:
    assert recorded({"mask_blur": 2, "timesteps": [3, np.float32(0.5)]}) == {
        "mask_blur": 2.0,
        "timesteps": (3.0, 0.5),
        "external": {},
    }
    assert isinstance(recorded({"mask_blur": 2})["mask_blur"], float)
    assert plain([np.float32(0.5), (np.int64(3), None)]) == (0.5, (3, None))
    found = recorded({"latents": np.zeros((1, 2), np.float32), "clip_skip": np.int64(2)})
    assert found["clip_skip"] == 2
    assert found["external"]["latents"].startswith("float32 (1, 2) sha256:")
    assert identity(inspect.signature) == "function inspect.signature"
    for value in (float("nan"), {1: 2}, object(), np.zeros(2)):
        with pytest.raises(TypeError):
            plain(value)
