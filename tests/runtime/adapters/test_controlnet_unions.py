"""ControlNet-Unions of a pipeline call: what they add, their modes, and wrong ones."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import ControlNetUnionModel
from PIL import Image
from safetensors.torch import load_file, save_file

import sdexport
from sdexport import ControlNet, InvalidArgumentError, Pipeline, load_pipeline
from sdexport.checkpoints.adapter_source import open_adapter
from sdexport.checkpoints.controlnet_source import controlnet_in_file
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.cli import main
from sdexport.commands.generate_controlnets import controlnets_of
from sdexport.engines import TensorSpec
from sdexport.engines.session import Feeds, SessionBase
from sdexport.runtime.adapters.adapter_store import AdapterStore
from sdexport.runtime.adapters.applied_controlnets import AppliedControlNets
from sdexport.runtime.adapters.controlled_images import ControlledImages
from sdexport.runtime.adapters.controlnet_argument import checked_controlnets
from sdexport.runtime.images.control_images import ControlImages
from sdexport.runtime.models.components import MID_RESIDUAL, is_residual
from sdexport.runtime.models.control_types import listed_types, type_number
from sdexport.runtime.packages.package import Package
from tests.helpers.control_nets import control_image
from tests.tolerances import IMAGE_ABS, UNION_RESIDUAL

CALL: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "height": 64, "width": 64}
EDGES, DEPTH = control_image(64, 64), control_image(64, 64, seed=1)
SIZE = (4, 8, 8)
"""Channels, height and width of the latents of a control image."""


@pytest.fixture(scope="module")
def pipe(lora_package: Path) -> Iterator[Pipeline]:
    with load_pipeline(lora_package) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def model(union_net: Path) -> Any:
    return ControlNetUnionModel.from_pretrained(union_net.parent / "union-net").eval()


def pixels(pipe: Pipeline, **arguments: Any) -> np.ndarray:
    images = pipe(**{"prompt": "a red circle", **CALL, **arguments}).images
    return np.stack([np.asarray(image) for image in images]).astype(int)


def differ(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


class Recorder(SessionBase):
    """A denoiser that gives what is added in its middle and to its first skip connection."""

    def __init__(self, package: Package) -> None:
        specs = package.graph_inputs("unet.controlnet")
        self.residuals: dict[str, np.ndarray] = {}
        super().__init__("unet", specs, (TensorSpec("out_sample", "float32", ("batch", 4, 8, 8)),))

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self.residuals = {k: v for k, v in feeds.items() if is_residual(k)}
        return {"out_sample": feeds["sample"]}


def tensor_of(image: Image.Image, rows: int) -> torch.Tensor:
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)[None]
    return pixels.repeat(rows, 1, 1, 1)


@pytest.mark.parametrize("guess_mode", [False, True])
@pytest.mark.parametrize(
    ("modes", "scales"),
    [([3], [0.7]), ([1, 4], [0.5, -0.3]), ([0, 3, 5], [1.0, 0.4, 0.0])],
    ids=str,
)
def test_residuals_are_those_of_diffusers(
    modes: list[int],
    scales: list[float],
    guess_mode: bool,
    lora_package: Path,
    union_net: Path,
    model: Any,
) -> None:
    """Also in a step in which only the first control image counts."""
    package, call = Package.load(lora_package), ControlledImages(2, 64, 64, range(4))
    images = [control_image(64, 64, seed=i) for i in range(len(modes))]
    nets = [
        ControlNet(union_net, image, scale, end=0.5 if i else 1.0, guess_mode=guess_mode, mode=mode)
        for i, (image, scale, mode) in enumerate(zip(images, scales, modes, strict=True))
    ]
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((2, *SIZE)).astype(np.float32)
    texts = rng.standard_normal((2, 77, model.config.cross_attention_dim)).astype(np.float32)
    with AdapterStore(package, "onnxruntime", {}) as store:
        recorder = Recorder(package)
        applied = AppliedControlNets(store, package, nets, list(map(ControlImages, images)), call)
        session = applied.wrap(recorder)
        constants = applied.conditioning(guided=False)
        for step, counting in ((0, len(modes)), (3, 1)):
            session.run(
                {
                    "sample": sample,
                    "timestep": np.array([500.0], np.float32),
                    "step": np.array([step]),
                    "encoder_hidden_states": texts,
                    **constants,
                }
            )
            with torch.inference_mode():
                down, mid = model(
                    torch.from_numpy(sample),
                    torch.tensor(500.0),
                    torch.from_numpy(texts),
                    controlnet_cond=[tensor_of(image, 2) for image in images],
                    control_type=torch.zeros(2, 6).index_fill(1, torch.tensor(modes), 1),
                    control_type_idx=modes,
                    conditioning_scale=[s if i < counting else 0.0 for i, s in enumerate(scales)],
                    guess_mode=guess_mode,
                    return_dict=False,
                )
            expected = [*down, mid]
            assert list(recorder.residuals)[-1] == MID_RESIDUAL
            for value, wanted in zip(recorder.residuals.values(), expected, strict=True):
                scale = max(float(wanted.abs().max()), 1.0)
                np.testing.assert_allclose(
                    value, wanted.numpy(), rtol=0, atol=UNION_RESIDUAL * scale
                )
        applied.close()


def test_modes_of_one_package_run_together(pipe: Pipeline, union_net: Path) -> None:
    short = [ControlNet(union_net, [EDGES, DEPTH], 0.6, mode=["canny", 1])]
    each = [
        ControlNet(union_net, EDGES, 0.6, mode=3),
        ControlNet(union_net, DEPTH, 0.6, mode="Depth"),
    ]
    assert [net.mode for net in checked_controlnets(short)] == ["canny", 1]
    both = pixels(pipe, controlnets=each)
    assert differ(both, pixels(pipe, controlnets=short)) == 0
    for one in (each[:1], each[1:]):
        assert differ(both, pixels(pipe, controlnets=one)) > IMAGE_ABS
    other = ControlNet(union_net, EDGES, 0.6, mode="normal")
    assert differ(pixels(pipe, controlnets=[other]), pixels(pipe, controlnets=each[:1])) > IMAGE_ABS


def test_with_another_controlnet(pipe: Pipeline, union_net: Path, control_folder: Path) -> None:
    union, plain = ControlNet(union_net, EDGES, mode=3), ControlNet(control_folder / "first", DEPTH)
    both = pixels(pipe, controlnets=[plain, union], prompt=["a", "b"])
    assert differ(both, pixels(pipe, controlnets=[union], prompt=["a", "b"])) > IMAGE_ABS
    with load_pipeline(pipe.package.folder, "openvino", max_batch=1) as other:
        assert (
            differ(both, pixels(other, controlnets=[plain, union], prompt=["a", "b"])) <= IMAGE_ABS
        )


def test_images_of_each_prompt_do_not_depend_on_max_batch(pipe: Pipeline, union_net: Path) -> None:
    """What the network makes of a control image depends on those of the other prompts."""
    nets, prompts = [ControlNet(union_net, [EDGES, DEPTH], mode=1)], ["a", "b"]
    found = pixels(pipe, controlnets=nets, prompt=prompts)
    with load_pipeline(pipe.package.folder, max_batch=1) as single:
        assert differ(found, pixels(single, controlnets=nets, prompt=prompts)) <= IMAGE_ABS


def test_the_image_is_made_again(
    pipe: Pipeline, union_net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(union_net.parent)
    EDGES.save(tmp_path / "edges.png")
    DEPTH.save(tmp_path / "depth.png")
    nets = [
        ControlNet(union_net, tmp_path / "edges.png", 0.7, end=0.6, mode="canny"),
        ControlNet(union_net, tmp_path / "depth.png", 0.4, mode=1),
    ]
    result = pipe("a", **CALL, controlnets=nets)
    recorded = result.parameters[0].controlnets
    assert recorded is not None
    assert [each.mode for each in recorded] == [3, 1]
    sdexport.save_image(result.images[0], tmp_path / "made.png")
    again = pipe.like(tmp_path / "made.png").images[0]
    assert again.tobytes() == result.images[0].tobytes()
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "made.png")]).output
    assert "mode 3" in shown


def test_wrong_modes(pipe: Pipeline, union_net: Path, control_folder: Path) -> None:
    for nets, message in (
        (
            [ControlNet(union_net, EDGES)],
            r"is a ControlNet-Union; give the mode.*0 openpose, 1 dep",
        ),
        ([ControlNet(union_net, EDGES, mode=6)], r"has no mode 6; expected one of 0 openpose"),
        ([ControlNet(union_net, EDGES, mode="tile")], r"has no mode 'tile'"),
        ([ControlNet(control_folder / "first", EDGES, mode=0)], r"first has no modes.*omit mode"),
        (
            [
                ControlNet(union_net, EDGES, mode=0),
                ControlNet(union_net, EDGES, mode=1, guess_mode=True),
            ],
            "give all of them the same",
        ),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            pipe("a", **CALL, controlnets=nets)
    assert differ(pixels(pipe), pixels(pipe)) == 0  # nothing stays in use


def test_names_of_types() -> None:
    assert type_number("Anime Lineart", 6, "x") == type_number("canny", 8, "x") == 3
    assert type_number("repaint", 8, "x") == 7
    assert listed_types(7) == "0 to 6"
    with pytest.raises(InvalidArgumentError, match="x has no mode 'canny'; expected one of 0 to 6"):
        type_number("canny", 7, "x")


def test_modes_on_the_command_line(union_net: Path, tmp_path: Path) -> None:
    for name in ("edges.png", "a=b.png"):
        EDGES.save(tmp_path / name)
    first, second, third = controlnets_of(
        [
            f"{union_net}:canny={tmp_path / 'edges.png'}:0.5:0:0.5",
            f"{union_net}:12={tmp_path / 'edges.png'}",
            f"{union_net}:{tmp_path / 'a=b.png'}",
        ],
        guess_mode=None,
    )
    assert (first.mode, first.image, first.scale) == ("canny", tmp_path / "edges.png", 0.5)
    assert (second.mode, third.mode, third.image) == (12, None, tmp_path / "a=b.png")
    with pytest.raises(FileNotFoundError, match=r"no image at .*missing\.png$"):
        controlnets_of([f"{union_net}:canny={tmp_path / 'missing.png'}"], guess_mode=None)


@pytest.mark.parametrize("image", ["runs/lr=3/edges.png", r"runs\lr=3.png"])
def test_paths_with_equals_signs_name_no_mode(
    image: str, union_net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(f"no image at {Path(image)}")):
        controlnets_of([f"{union_net}:{image}"], guess_mode=None)


def test_package_is_inspected(union_net: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(union_net)])
    assert result.exit_code == 0, result.output
    assert "modes" in result.output
    assert "3 canny/lineart/anime_lineart/mlsd" in result.output
    residuals = "-> down_block_additional_residuals_0 to down_block_additional_residuals_"
    assert residuals in result.output
    assert "residuals_1:" not in result.output  # one line for all of a kind
    assert "-> mid_block_additional_residual: float32" in result.output
    assert sdexport.verify(union_net, "openvino").passed


def test_file_in_the_layout_of_diffusers(union_net: Path, model: Any, tmp_path: Path) -> None:
    folder, path = union_net.parent / "union-net", tmp_path / "net.safetensors"
    save_file(load_file(folder / "diffusion_pytorch_model.safetensors"), path)
    settings = {**dict(model.config), "num_trans_head": 8}
    found = controlnet_in_file(WeightFile.open(path), [settings])
    assert found is not None
    loaded = found["loader"]("controlnet").state_dict()
    expected = model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    assert found["written_configs"]["controlnet"]["num_control_type"] == 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_control_type": 0}, "num_control_type of 1"),
        ({"num_control_type": "6"}, "num_control_type of 1"),
        ({"num_control_type": 7}, "another shape"),
        ({"num_trans_head": 0}, "num_trans_head"),
        ({"num_trans_head": 3}, "num_trans_head"),
        ({"num_proj_channel": 8}, "num_proj_channel"),
        ({"addition_time_embed_dim": None}, "addition_time_embed_dim"),
        ({"controlnet_conditioning_channel_order": "bgr"}, "order of rgb"),
        ({"num_trans_layer": 2}, "missing"),
        ({"num_trans_layer": -1}, "would not be used"),
    ],
    ids=str,
)
def test_wrong_configurations(
    values: dict[str, Any], message: str, union_net: Path, tmp_path: Path
) -> None:
    net = Path(shutil.copytree(union_net.parent / "union-net", tmp_path / "net"))
    path = net / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(sdexport.CheckpointError, match=message):
        open_adapter(net)
