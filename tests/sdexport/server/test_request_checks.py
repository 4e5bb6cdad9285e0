"""Checks of a request that need no model: what clients may read, and images that it brings."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sdexport import ControlNet
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.pipeline import call_argument_names
from sdexport.server.image_service import ImageService
from sdexport.server.model_store import ModelStore
from sdexport.server.request_checks import (
    NOT_IN_REQUESTS,
    checked_arguments,
    input_images,
    output_size,
    public_text,
)
from sdexport.server.server_settings import ServerSettings


def test_folders_are_replaced_as_whole_names_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {str(tmp_path / "models"): "demo", "a": "first", ".": "here", "../up": "second"}
    for text, expected in (
        (f"{tmp_path}/models/unet: damaged", "demo/unet: damaged"),
        (f"'{tmp_path}/models' is damaged", "'demo' is damaged"),
        (f"{tmp_path}/models-2/unet", "here/models-2/unet"),
        (f"x{tmp_path}/models", f"x{tmp_path}/models"),
        ("a number, expected a list.", "a number, expected a list."),
        ("a/unet/model.onnx: damaged", "first/unet/model.onnx: damaged"),
        (f"{tmp_path}/a/unet", "first/unet"),
        ("./unet: 0.5 is no number.", "here/unet: 0.5 is no number."),
        ("../up/unet", "second/unet"),
        ("data/unet and /data/a/unet", "data/unet and /data/a/unet"),
    ):
        assert public_text(text, folders) == expected


def test_paths_and_arrays_are_no_images_of_a_request(demo_package: Path) -> None:
    service = ImageService(ModelStore({"demo": demo_package}))
    model, settings = service.models.model(None), ServerSettings()
    for name in ("image", "mask_image"):
        for value in ("/etc/passwd", Path("/etc/passwd"), ["/etc/passwd"], b"x", 5, {}):
            with pytest.raises(InvalidArgumentError, match=f"{name}: expected an image"):
                checked_arguments({"prompt": "x", name: value}, model, service.names, settings)
    for scheduler in ("/etc/passwd", Path("/etc/passwd"), 5, ["ddim"]):
        with pytest.raises(InvalidArgumentError, match="scheduler"):
            given = {"prompt": "x", "scheduler": scheduler}
            checked_arguments(given, model, service.names, settings)


def test_images_of_a_request_are_counted_together(demo_package: Path) -> None:
    image = Image.new("RGB", (10, 10))
    net = ControlNet("net", [image, image])
    assert len(input_images({"image": image, "mask_image": [image], "controlnets": [net]})) == 4
    service = ImageService(ModelStore({"demo": demo_package}))
    settings = ServerSettings(max_input_pixels=150)
    given = {"prompt": "x", "image": image, "mask_image": image, "width": 64, "height": 64}
    with pytest.raises(InvalidArgumentError, match="200 pixels; at most 150"):
        checked_arguments(given, service.models.model(None), service.names, settings)


def test_results_of_the_size_of_an_image_are_limited(demo_package: Path) -> None:
    service = ImageService(ModelStore({"demo": demo_package}))
    model, settings = service.models.model(None), ServerSettings(max_pixels=64 * 64)
    image = Image.new("RGB", (65, 64))
    given = {"prompt": "x", "image": image, "mask_image": image, "width": 64, "height": 64}
    checked_arguments(given, model, service.names, settings)
    for further in ({"paste_back": True}, {"padding_mask_crop": 0}):
        with pytest.raises(InvalidArgumentError, match="65x64; the limit is 4,096 pixels"):
            checked_arguments({**given, **further}, model, service.names, settings)


def test_size_of_results_is_that_of_the_image_they_are_pasted_into(demo_package: Path) -> None:
    model = ModelStore({"demo": demo_package}).model(None)
    image = Image.new("RGB", (75, 64))
    given = {"image": [image], "mask_image": image}
    assert output_size({}, model) == (128, 128)
    assert output_size(given, model) == (72, 64)
    assert output_size({**given, "paste_back": True}, model) == (75, 64)
    assert output_size({**given, "padding_mask_crop": 0}, model) == (75, 64)


def test_every_argument_of_a_call_is_one_of_a_request_or_has_a_reason() -> None:
    assert NOT_IN_REQUESTS.keys() <= set(call_argument_names())
