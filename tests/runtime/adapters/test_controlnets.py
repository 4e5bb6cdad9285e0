"""ControlNets of a pipeline call: arguments, composition with other settings, bad input."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport import ControlNet, InvalidArgumentError, PackageError, Pipeline, load_pipeline
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.runtime.adapters import applied_controlnets
from sdexport.runtime.adapters.applied_controlnets import AppliedControlNets
from sdexport.runtime.adapters.controlnet_runs import ControlRun, steps_of
from sdexport.runtime.packages.package import Package
from tests.helpers.control_nets import control_image
from tests.helpers.lora_files import ATTENTION, random_lora, save_peft
from tests.tolerances import IMAGE_ABS

CALL: dict[str, Any] = {
    "prompt": ["a red circle", "a blue star"],
    "num_inference_steps": 3,
    "seed": 3,
    "height": 64,
    "width": 72,
}
EDGES = control_image(72, 64)


@pytest.fixture(scope="module")
def pipe(lora_package: Path) -> Iterator[Pipeline]:
    with load_pipeline(lora_package) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def net(control_folder: Path) -> Path:
    return control_folder / "first"


def pixels(pipe: Pipeline, **arguments: Any) -> np.ndarray:
    images = pipe(**{**CALL, **arguments}).images
    return np.stack([np.asarray(image) for image in images]).astype(int)


def differ(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch": 1},
        {"low_memory": True},
        {"expected_images": 1},
        {"backend": {"unet": "openvino", "controlnet": "onnxruntime"}},
        {"backend": "openvino", "threads": 1},
    ],
    ids=str,
)
def test_pipeline_options_change_nothing(
    options: dict[str, Any], pipe: Pipeline, lora_package: Path, net: Path
) -> None:
    nets = [ControlNet(net, EDGES, 0.7, end=0.7), ControlNet(net, EDGES, 0.4, guess_mode=True)]
    with load_pipeline(lora_package, **options) as other:
        assert differ(pixels(pipe, controlnets=nets), pixels(other, controlnets=nets)) <= IMAGE_ABS


def test_without_effect_the_image_is_the_same(pipe: Pipeline, net: Path) -> None:
    plain = pixels(pipe)
    assert differ(plain, pixels(pipe, controlnets=[])) == 0
    assert differ(plain, pixels(pipe, controlnets=[ControlNet(net, EDGES, 0)])) <= IMAGE_ABS
    late = ControlNet(net, EDGES, start=0.9, end=0.95)  # between two steps
    assert differ(plain, pixels(pipe, controlnets=[late])) <= IMAGE_ABS


def test_two_nets_add_up(pipe: Pipeline, net: Path) -> None:
    halves = [ControlNet(net, EDGES, 0.25), ControlNet(net, EDGES, 0.75)]
    whole = pixels(pipe, controlnets=[ControlNet(net, EDGES)])
    assert differ(pixels(pipe, controlnets=halves), whole) <= IMAGE_ABS


def test_images_of_each_prompt(pipe: Pipeline, net: Path) -> None:
    other = control_image(72, 64, seed=5)
    both = pixels(pipe, controlnets=[ControlNet(net, [EDGES, other])], seed=[1, 2])
    for place, (image, seed) in enumerate([(EDGES, 1), (other, 2)]):
        prompt = CALL["prompt"][place]
        single = pixels(pipe, prompt=prompt, seed=seed, controlnets=[ControlNet(net, image)])
        assert differ(both[place], single[0]) <= IMAGE_ABS


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance_interval": (0.3, 0.8)},
        {"cache_interval": (0.2, 0.9)},
        {"prompt": "a red circle AND a blue star :0.5", "prompt_style": "automatic1111"},
        {"guidance_scale": 1.0},
        {"scheduler": "heun"},
    ],
    ids=str,
)
def test_other_settings_are_as_with_one_image_at_a_time(
    arguments: dict[str, Any], pipe: Pipeline, lora_package: Path, net: Path
) -> None:
    nets = [ControlNet(net, EDGES, start=0.1), ControlNet(net, EDGES, -0.3, guess_mode=True)]
    found = pixels(pipe, controlnets=nets, **arguments)
    with load_pipeline(lora_package, max_batch=1) as single:
        for _ in range(2):  # the second call uses sessions that the first one left open
            assert differ(found, pixels(single, controlnets=nets, **arguments)) <= IMAGE_ABS
    assert differ(found, pixels(pipe, **arguments)) > IMAGE_ABS


def test_with_loras(pipe: Pipeline, lora_folder: Path, net: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(lora_folder / "checkpoint")
    pairs = random_lora({"unet": checkpoint.load("unet")}, ATTENTION, rank=3)
    file = save_peft(tmp_path / "a.safetensors", {"unet": pairs["unet"]})
    nets, lora = [ControlNet(net, EDGES, 0.2)], [(file, 0.8)]
    both = pixels(pipe, controlnets=nets, loras=lora)
    assert pipe("a", seed=0, num_inference_steps=1, controlnets=nets, loras=lora)
    for other in (pixels(pipe, controlnets=nets), pixels(pipe, loras=lora)):
        assert differ(both, other) > IMAGE_ABS
    nothing = pixels(pipe, controlnets=[ControlNet(net, EDGES, 0)], loras=lora)
    assert differ(nothing, pixels(pipe, loras=lora)) <= IMAGE_ABS
    unused = pixels(pipe, controlnets=nets, loras=[(file, [0.0, 0.5])])
    assert differ(unused[0], pixels(pipe, controlnets=nets)[0]) <= IMAGE_ABS


def test_size_is_that_of_the_control_image(pipe: Pipeline, net: Path) -> None:
    result = pipe(
        "a", num_inference_steps=1, seed=0, controlnets=[ControlNet(net, control_image(83, 65))]
    )
    assert result.images[0].size == (80, 64)


def test_a_callback_changes_the_prompt(pipe: Pipeline, net: Path) -> None:
    def halve(_: Any, __: int, ___: float, arrays: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": arrays["prompt_embeds"] * 0.5}

    nets = [ControlNet(net, EDGES, 0.2)]
    changed = pixels(
        pipe,
        controlnets=nets,
        callback_on_step_end=halve,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )
    assert differ(changed, pixels(pipe, controlnets=nets)) > IMAGE_ABS


def test_a_loaded_package_and_calls_in_turn(pipe: Pipeline, control_folder: Path) -> None:
    nets = [Package.load(control_folder / name) for name in ("first", "second")]
    first = pixels(pipe, controlnets=[ControlNet(nets[0], EDGES)])
    second = pixels(pipe, controlnets=[ControlNet(nets[1], EDGES)])
    assert differ(first, second) > IMAGE_ABS
    assert differ(first, pixels(pipe, controlnets=[ControlNet(nets[0], EDGES)])) == 0


def test_the_image_is_made_again(
    pipe: Pipeline, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(net.parent)
    EDGES.save(tmp_path / "edges.png")
    nets = [ControlNet(net, tmp_path / "edges.png", 0.7, end=0.8, guess_mode=True)]
    image = pipe(**CALL, controlnets=nets).images[1]
    image.save(tmp_path / "made.png", pnginfo=None)
    result = pipe(**CALL, controlnets=nets)
    recorded = result.parameters[1].controlnets
    assert recorded is not None
    assert (recorded[0].name, recorded[0].scale, recorded[0].end) == ("first", 0.7, 0.8)
    assert recorded[0].images[0].name == "edges.png"
    import sdexport

    sdexport.save_image(result.images[1], tmp_path / "made.png")
    again = pipe.like(tmp_path / "made.png").images[0]
    assert again.tobytes() == result.images[1].tobytes()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"ControlNet 'first'.*give controlnets"):
        pipe.like(tmp_path / "made.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 1e9}, "scale must be -100 to 100"),
        ({"scale": float("nan")}, "scale must be"),
        ({"start": 0.6, "end": 0.4}, "start < end"),
        ({"start": 0.5, "end": 0.5}, "start < end"),
        ({"end": 1.5}, "0 to 1"),
        ({"guess_mode": 1}, "True or False"),
        ({"mode": 1.5}, "expected a name such as 'canny'"),
        ({"mode": True}, "expected a name"),
        ({"mode": -1}, "expected a name"),
        ({"mode": ["canny", None]}, "expected a name"),
        ({"mode": []}, "0 modes and 1 control images"),
        ({"mode": ["canny", "depth"]}, "2 modes and 1 control images"),
        ({"mode": ["canny"], "image": [EDGES, EDGES]}, "1 modes and 2 control images"),
        ({"package": 3}, "folder of a package"),
        ({"package": "a\0b"}, "folder of a package"),
        ({"image": None}, "control image"),
    ],
    ids=lambda value: str(value).split("<")[0],  # what names an image differs in each process
)
def test_wrong_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        ControlNet(**{"package": "net", "image": EDGES, **arguments})


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((64, 64, 3), np.nan, np.float32), "NaN"),
        (np.full((64, 64, 3), -3.0, np.float32), "values from -3"),
        (np.zeros((64, 64, 7), np.uint8), "channels"),
        (np.zeros((0, 64, 3), np.uint8), "channels"),
        ([], "empty list"),
        ([EDGES] * 3, "3 control images to generate 2"),
        ("missing.png", "no image at missing.png"),
        (object(), "expected a file"),
    ],
    ids=["nan", "low", "channels", "empty", "none", "count", "missing", "object"],
)
def test_wrong_control_images(image: Any, message: str, pipe: Pipeline, net: Path) -> None:
    with pytest.raises((InvalidArgumentError, FileNotFoundError), match=message):
        pixels(pipe, controlnets=[ControlNet(net, image)])


@pytest.mark.parametrize(
    ("nets", "message"),
    [("net", "expected a list"), ([3], "expected a ControlNet"), ({}, "expected a list")],
    ids=str,
)
def test_other_arguments(nets: Any, message: str, pipe: Pipeline) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        pixels(pipe, controlnets=nets)


def test_packages_of_other_kinds(
    pipe: Pipeline, package: Path, lora_package: Path, net: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match="package of a model, not of ControlNets"):
        pixels(pipe, controlnets=[ControlNet(lora_package, EDGES)])
    with pytest.raises(InvalidArgumentError, match="package of a controlnet, not of a model"):
        load_pipeline(net)
    with pytest.raises(FileNotFoundError, match="no package at"):
        pixels(pipe, controlnets=[ControlNet(net.parent / "nothing", EDGES)])
    with (
        load_pipeline(package) as plain,
        pytest.raises(PackageError, match=r"has no unet/controlnet.onnx.*--controlnet-inputs"),
    ):
        plain("a", seed=0, controlnets=[ControlNet(net, EDGES)])


def test_backend_without_controlnets(lora_package: Path, net: Path) -> None:
    with (
        load_pipeline(lora_package, "tensorrt") as pipe,
        pytest.raises(InvalidArgumentError, match="does not take ControlNets"),
    ):
        pipe("a", seed=0, controlnets=[ControlNet(net, EDGES)])


def test_backend_that_needs_an_engine(lora_package: Path, net: Path, tmp_path: Path) -> None:
    with (
        load_pipeline(lora_package, "tensorrt-rtx", engine_dir=tmp_path) as pipe,
        pytest.raises(
            InvalidArgumentError, match=r"no engine of unet\.controlnet .* --component unet\.contr"
        ),
    ):
        pipe("a", seed=0, controlnets=[ControlNet(net, EDGES)])


def test_backend_that_needs_an_engine_of_a_graph_that_is_missing(package: Path, net: Path) -> None:
    with (
        load_pipeline(package, "tensorrt-rtx") as pipe,
        pytest.raises(PackageError, match=r"has no unet/controlnet.onnx.*--controlnet-inputs"),
    ):
        pipe("a", seed=0, controlnets=[ControlNet(net, EDGES)])


def test_engine_that_no_signature_covers(lora_package: Path, net: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lora_package, tmp_path / "package")
    plan = folder / "engines" / "tensorrt-rtx" / "unet.controlnet.plan"
    messages = [
        r"no engine of unet\.controlnet .* --component unet\.controlnet --engine-dir DIR$",
        r"unet\.controlnet\.plan is not covered by a signature; .* --engine-dir DIR",
    ]
    with load_pipeline(folder, "tensorrt-rtx", trust="signed") as pipe:
        for message in messages:
            with pytest.raises(InvalidArgumentError, match=message):
                pipe("a", seed=0, controlnets=[ControlNet(net, EDGES)])
            plan.parent.mkdir(parents=True, exist_ok=True)
            plan.touch()


def test_arrays_are_taken_as_they_are(pipe: Pipeline, net: Path) -> None:
    floats = np.asarray(EDGES, np.float32) / 255
    expected = pixels(pipe, controlnets=[ControlNet(net, EDGES)])
    for image in (floats, floats.transpose(2, 0, 1), np.asarray(EDGES), floats * 255):
        assert differ(expected, pixels(pipe, controlnets=[ControlNet(net, image)])) <= IMAGE_ABS
    masked = floats.copy()
    masked[:32] = -1  # as for an inpainting ControlNet
    assert differ(expected, pixels(pipe, controlnets=[ControlNet(net, masked)])) > IMAGE_ABS


def test_steps_are_those_of_diffusers() -> None:
    net = ControlNet("net", Image.new("RGB", (8, 8)), start=0.25, end=0.75)
    assert steps_of(range(4), net) == {1, 2}
    assert steps_of(range(10, 14), net) == {11, 12}
    assert steps_of(range(3), net) == {1}


@pytest.mark.parametrize("pools", [(True, False), (False, True), (False, False)])
def test_pooling_of_the_first_decides_for_all(
    pools: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in diffusers: guess mode for every ControlNet if the first one pools its outputs."""
    session = SimpleNamespace(outputs=[SimpleNamespace(name="a"), SimpleNamespace(name="b")])
    manifest = SimpleNamespace(components={"controlnet": SimpleNamespace(inputs=())})
    opened: list[Any] = [
        SimpleNamespace(
            package=SimpleNamespace(
                config=lambda _, pool=pool: {"global_pool_conditions": pool}, manifest=manifest
            ),
            sessions=SimpleNamespace(session=lambda _: session),
        )
        for pool in pools
    ]
    applied = object.__new__(AppliedControlNets)
    vars(applied).update(
        _runs=[
            ControlRun(each, [ControlNet(name, EDGES)])
            for each, name in zip(opened, ("one", "two"), strict=True)
        ],
        packages=[each.package for each in opened],
        _call=SimpleNamespace(steps=range(2)),
    )
    monkeypatch.setattr(applied_controlnets, "ControlledSession", lambda _, nets: nets)
    first, second = applied.wrap(session)  # type: ignore[arg-type, misc]
    assert (first.conditional_only, second.conditional_only) == (pools[0], pools[0])
    assert first.scales["a"] == 1
    assert (second.scales["a"] < 1) == pools[0]
