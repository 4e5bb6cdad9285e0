"""Fields, masks and ControlNet units of AUTOMATIC1111's API."""

from __future__ import annotations

import asyncio
import base64
import json
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.errors import InvalidArgumentError
from sdexport.server.automatic1111_controlnet import controlnet_arguments, units
from sdexport.server.automatic1111_fields import COMMON, IMAGES, WITHOUT_EFFECT, checked_fields
from sdexport.server.automatic1111_generate import _is_done, planned
from sdexport.server.automatic1111_images import binary_mask, filled
from sdexport.server.automatic1111_options import Options
from sdexport.server.automatic1111_requests import RunningRequests
from sdexport.server.image_request import ImageRequest
from sdexport.server.image_service import ImageService
from sdexport.server.input_images import RequestImages
from sdexport.server.jobs import Job
from sdexport.server.model_store import ModelStore
from sdexport.server.output_images import encoded_image
from sdexport.server.registered_names import RegisteredNames
from sdexport.server.server_errors import JobCancelledError
from sdexport.server.server_settings import ServerSettings

WHITE = Image.new("RGB", (16, 8), "white")


def test_checked_fields_has_the_web_ui_s_defaults() -> None:
    found = checked_fields({}, image=True)
    assert found.keys() == {*COMMON, *IMAGES}
    assert (found["steps"], found["width"], found["cfg_scale"]) == (50, 512, 7.0)
    assert checked_fields({"steps": None, "hr_scale": 2}, image=False)["steps"] == 50


HUGE = pytest.param(10**400, id="huge")


@pytest.mark.parametrize("name", [*COMMON, *IMAGES])
@pytest.mark.parametrize("value", [{"a": {}}, [[]], "9" * 20, float("nan"), True, HUGE, 1.5])
def test_checked_fields_takes_a_value_or_names_the_field(name: str, value: Any) -> None:
    try:
        found = checked_fields({name: value}, image=True)
    except InvalidArgumentError as error:
        assert name in str(error)
    else:
        assert found[name] == value


@pytest.mark.parametrize("body", [None, [], "x", 3, {"stepz": 3}, {"": 1}, {"\n": 1}])
def test_checked_fields_rejects_other_bodies(body: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        checked_fields(body, image=False)
    assert "\n" not in str(caught.value)
    if body == {"stepz": 3}:
        assert "did you mean steps?" in str(caught.value)


@pytest.mark.parametrize("seed", range(40))
def test_planned_reads_any_json_or_names_what_is_wrong(seed: int) -> None:
    service: Any = SimpleNamespace(
        settings=ServerSettings(), names=RegisteredNames(), models=StoreOfOne()
    )
    options = Options(lambda name: "demo", str, "demo")
    random = Random(seed)
    image = base64.b64encode(encoded_image(WHITE)).decode()
    for _ in range(25):
        body = {
            name: random_json(random, image)
            for name in random.sample([*COMMON, *IMAGES, *WITHOUT_EFFECT, "x"], 3)
        }
        body |= {"init_images": [image], "width": 32, "height": 32} if random.random() < 0.7 else {}
        try:
            images = RequestImages(service.settings)
            found = planned(service, options, body, images, image=True)
        except InvalidArgumentError as error:
            assert str(error).isprintable()
        else:
            json.dumps(found.parameters)


class StoreOfOne:
    """A store of models that checks no name."""

    def model(self, name: str) -> str:
        return name


def test_a_job_that_was_skipped_is_missing_and_another_one_is_an_error() -> None:
    service = ImageService(ModelStore({"demo": PACKAGE_DIR}))
    running = RunningRequests()
    with running.running(2) as request:
        request.jobs += [Job(ImageRequest("demo", {}), 1) for _ in range(2)]
        (skipped,) = running.skip()
        assert request.state()["skipped"]
        for job in request.jobs:
            job.cancel(JobCancelledError("cancelled"))
        assert skipped is request.jobs[0] and not request.state()["skipped"]
        assert not asyncio.run(_is_done(service, request, request.jobs[0]))
        with pytest.raises(JobCancelledError):
            asyncio.run(_is_done(service, request, request.jobs[1]))


def random_json(random: Random, image: str, depth: int = 0) -> Any:
    """A random value, often one of a kind that the API uses somewhere."""
    values = [None, True, False, 0, 1, -1, 2, 7.5, 1e300, -(10**400), "", "None", "x\n\x00", image]
    values += ["Euler a", "Karras", "<lora:a:1>", "controlnet", "\ud800", "9" * 5000]
    kind = random.random()
    if depth > 3 or kind < 0.6:
        return random.choice(values)
    items = [random_json(random, image, depth + 1) for _ in range(random.randrange(4))]
    if kind < 0.75:
        return items
    keys = ["args", "image", "model", "enabled", "ControlNet", "CLIP_stop_at_last_layers", "mask"]
    return {random.choice(keys): item for item in items}


def test_binary_mask_reads_alpha_or_grey() -> None:
    strokes = Image.new("RGBA", (4, 1), (0, 0, 0, 0))
    strokes.putpixel((1, 0), (0, 0, 0, 255))
    assert list(np.asarray(binary_mask(strokes))[0]) == [0, 255, 0, 0]
    grey = Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))
    assert list(np.asarray(binary_mask(grey))[0]) == [0, 0, 255, 255]
    assert list(np.asarray(binary_mask(grey, soft=True))[0]) == [0, 127, 128, 255]


def test_filled_spreads_the_nearest_colours_and_keeps_the_rest() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:] = (250, 0, 0), (0, 0, 250)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 56, 56))
    pixels[8:56, 8:56] = 255
    found = np.asarray(filled(Image.fromarray(pixels), mask)).astype(int)
    covered = np.asarray(mask) == 255
    assert np.array_equal(found[~covered], pixels[~covered])
    assert found[32, 10, 0] > 200 > found[32, 10, 2] and found[32, 53, 2] > 200
    assert found[covered][:, 1].max() < 32  # nothing white is left
    unmasked = Image.new("L", (64, 64))
    assert np.array_equal(filled(Image.fromarray(pixels), unmasked), pixels)
    everything = Image.new("L", (64, 64), 255)
    assert filled(Image.fromarray(pixels), everything).size == (64, 64)


def test_controlnet_units_become_arguments() -> None:
    unit = {
        "enabled": True,
        "model": "edges [0123abcd]",
        "weight": 0.5,
        "guidance_start": 0.1,
        "guidance_end": 0.9,
        "control_mode": "ControlNet is more important",
        "resize_mode": "Just Resize",
        "pixel_perfect": True,
        "union_control_type": "Depth",  # of no effect, as it is no ControlNet-Union
    }
    (found,) = controlnet_arguments(
        units({"ControlNet": {"args": [unit, {"enabled": False, "made_up": 1}]}}),
        {"edges": 0},
        (32, 32),
        RequestImages(ServerSettings()),
        image=WHITE,
    )
    assert found.pop("image").size == (32, 32)
    assert found == {
        **{"name": "edges", "scale": 0.5, "start": 0.1, "end": 0.9},
        "guess_mode": True,
    }


@pytest.mark.parametrize(
    "unit",
    [
        {"model": "other"},
        {"model": None},
        {"model": "edges", "module": "canny"},
        {"model": "edges", "mask": "AAAA"},
        {"model": "edges", "image": {"image": "AAAA", "mask": "AAAA"}},
        {"model": "edges", "resize_mode": 7},
        {"model": "edges", "resize_mode": ["Just Resize"]},
        {"model": "edges", "control_mode": "My prompt is more important"},
        {"model": "edges", "advanced_weighting": [1.0]},
        {"model": "edges", "image": "https://example.org/a.png"},
    ],
)
def test_controlnet_units_reject_what_is_missing(unit: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="ControlNet"):
        controlnet_arguments(
            units({"controlnet": {"args": [unit]}}),
            {"edges": 0},
            (32, 32),
            RequestImages(ServerSettings()),
            image=WHITE,
        )


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("OpenPose", 0), ("Depth", 1), ("Soft Edge", 2), ("Hard Edge", 3), ("Normal Map", 4)),
        *(("Segmentation", 5), ("hard edge", 3), ("canny", 3), ("Tile", 6)),
    ],
)
def test_types_of_a_controlnet_union_become_modes(kind: str, mode: int) -> None:
    unit = {"model": "union", "union_control_type": kind}
    images = RequestImages(ServerSettings())
    (found,) = controlnet_arguments([unit], {"union": 8}, (32, 32), images, image=WHITE)
    assert found["mode"] == mode


@pytest.mark.parametrize("kind", [None, "", "Unknown", "Tile", "edges", 3.5, ["Depth"], {}, True])
def test_a_controlnet_union_needs_a_type_that_it_knows(kind: Any) -> None:
    unit = {"model": "union", "union_control_type": kind}
    images = RequestImages(ServerSettings())
    with pytest.raises(InvalidArgumentError, match="union"):
        controlnet_arguments([unit], {"union": 6}, (32, 32), images, image=WHITE)


@pytest.mark.parametrize("scripts", [{"x": 3}, {"x": {"args": 3}}, {"x": {"args": [{"a": 1}]}}])
def test_scripts_of_another_form_are_rejected(scripts: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="alwayson_scripts"):
        units(scripts)
