"""ControlNet-XS of a pipeline call: what it replaces, and calls that it does not fit."""

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
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNetControlNetXSModel,
)

import sdexport
from sdexport import ControlNet, InvalidArgumentError, PackageError, Pipeline, load_pipeline
from sdexport.adapter_exporter import export_adapter
from sdexport.checkpoints.adapter_source import open_adapter
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.cli import main
from sdexport.demo_model import PACKAGE_DIR
from sdexport.runtime import component_sessions
from sdexport.runtime.memory_need import (
    adapter_calls,
    image_calls,
    memory_need,
    need_with_adapter,
)
from sdexport.runtime.models.controlnet import CONTROL_EMBEDDING, CONTROLNET_XS
from sdexport.runtime.packages.package import Package
from tests.helpers.control_nets import control_image
from tests.helpers.control_xs import fused_of
from tests.helpers.lora_files import ATTENTION, random_lora, save_peft
from tests.tolerances import FUSED_UNET_ABS, IMAGE_ABS

CALL: dict[str, Any] = {
    "prompt": "a red circle",
    "num_inference_steps": 3,
    "seed": 3,
    "height": 64,
    "width": 64,
}
EDGES, PHOTO = control_image(64, 64), control_image(64, 64, seed=1)
MASK = np.zeros((64, 64), np.uint8)
MASK[16:, :32] = 255


@pytest.fixture(scope="module")
def xs(xs_folder: Path) -> Path:
    return xs_folder / "xs"


@pytest.fixture(scope="module")
def pipe(xs_folder: Path) -> Iterator[Pipeline]:
    with load_pipeline(xs_folder / "package") as pipeline:
        yield pipeline


def pixels(pipe: Pipeline, **arguments: Any) -> np.ndarray:
    images = pipe(**{**CALL, **arguments}).images
    return np.stack([np.asarray(image) for image in images]).astype(int)


def differ(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


def test_control_images_change_the_image(pipe: Pipeline, xs: Path) -> None:
    plain = pixels(pipe)
    found = pixels(pipe, controlnets=[ControlNet(xs, EDGES)])
    assert differ(found, plain) > 16 * IMAGE_ABS
    assert differ(found, pixels(pipe, controlnets=[ControlNet(xs, PHOTO)])) > 16 * IMAGE_ABS


def test_in_no_step(pipe: Pipeline, xs: Path) -> None:
    found = pixels(pipe, controlnets=[ControlNet(xs, EDGES, start=0.4, end=0.5)])
    assert differ(found, pixels(pipe)) == 0


class Fused(torch.nn.Module):
    """diffusers' model of both, as the UNet of one of its pipelines."""

    def __init__(self, unet: Any, fused: Any, scale: float) -> None:
        super().__init__()
        self.config, self.dtype, self.device = unet.config, unet.dtype, unet.device
        self._scale = scale
        self._fused = [fused]
        image = torch.from_numpy(np.asarray(EDGES, np.float32) / 255)
        self._image = image.permute(2, 0, 1)[None]

    def forward(self, sample: Any, timestep: Any, **arguments: Any) -> Any:
        return self._fused[0](
            sample,
            timestep,
            arguments["encoder_hidden_states"],
            controlnet_cond=self._image.repeat(len(sample), 1, 1, 1),
            conditioning_scale=self._scale,
            return_dict=False,
        )


@pytest.mark.parametrize(
    ("class_", "further"),
    [
        (StableDiffusionImg2ImgPipeline, {"image": PHOTO, "strength": 0.7}),
        (StableDiffusionInpaintPipeline, {"image": PHOTO, "mask_image": MASK, "strength": 1.0}),
    ],
    ids=["image", "mask"],
)
def test_with_an_input_image(
    class_: Any, further: dict[str, Any], pipe: Pipeline, xs: Path
) -> None:
    """For which diffusers has no pipeline with a ControlNet-XS: it is put in place of the UNet."""
    folder = xs.parent
    other = class_.from_pretrained(folder / "checkpoint", safety_checker=None)
    other.set_progress_bar_config(disable=True)
    other.unet = Fused(other.unet, fused_of(folder), 0.8)
    generator = torch.Generator().manual_seed(CALL["seed"])
    call = {k: v for k, v in CALL.items() if k not in ("seed", "height", "width")} | further
    expected = np.asarray(other(generator=generator, **call).images[0]).astype(int)
    found = pixels(pipe, controlnets=[ControlNet(xs, EDGES, 0.8)], **further)
    assert differ(found[0], expected) <= IMAGE_ABS


def test_ways_to_run_agree(pipe: Pipeline, xs: Path) -> None:
    call = {
        "prompt": ["a red circle", "two AND three"],
        "guidance_interval": (0.3, 1.0),
        "height": 72,
        "width": 56,
        "controlnets": [ControlNet(xs, [EDGES, PHOTO], end=0.7)],
    }
    expected = pixels(pipe, **call)
    folder = pipe.package.folder
    for options in ({"low_memory": True, "max_batch": 1}, {"backend": "openvino"}):
        with load_pipeline(folder, **options) as other:
            assert differ(pixels(other, **call), expected) <= IMAGE_ABS


@pytest.mark.slow
def test_its_own_backend(xs: Path) -> None:
    backends = {"unet": "onnxruntime", "controlnet": "openvino"}
    call = {"controlnets": [ControlNet(xs, EDGES, end=0.7)]}
    with (
        load_pipeline(xs.parent / "package", backends) as one,
        load_pipeline(xs.parent / "package") as other,
    ):
        assert differ(pixels(one, **call), pixels(other, **call)) <= IMAGE_ABS


def test_the_denoiser_is_not_opened_in_vain(xs: Path) -> None:
    for net, opens in ((ControlNet(xs, EDGES), False), (ControlNet(xs, EDGES, end=0.7), True)):
        with load_pipeline(xs.parent / "package") as pipe:
            pixels(pipe, controlnets=[net])
            assert ("unet" in pipe._components._opened) is opens


def test_low_memory_keeps_one_graph_at_a_time(xs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two packages too: when one's graph is opened, those of the other are closed."""
    opened: list[Any] = []
    names: list[str] = []
    original = component_sessions.open_component

    def open_component(package: Package, component: str, *arguments: Any, **options: Any) -> Any:
        if component != CONTROL_EMBEDDING.name:
            assert all(each._closed for each in opened), component
            names.append(component)
        opened.append(original(package, component, *arguments, **options))
        return opened[-1]

    monkeypatch.setattr(component_sessions, "open_component", open_component)
    net = ControlNet(xs, EDGES, start=0.25, end=0.75)
    with load_pipeline(xs.parent / "package", low_memory=True) as pipe:
        pixels(pipe, controlnets=[net], num_inference_steps=4)
    assert names == ["text_encoder", "unet", CONTROLNET_XS.name, "unet", "vae_decoder"]


def test_low_memory_needs_the_larger_of_both(pipe: Pipeline, xs: Path) -> None:
    size: dict[str, Any] = {"width": 64, "height": 64}
    model, adapter = pipe.package, Package.load(xs)
    calls = adapter_calls(adapter, **size)
    own = memory_need(adapter, calls, low_memory=True)
    need = memory_need(model, image_calls(model, **size), low_memory=True)
    assert own is not None and need is not None
    assert need_with_adapter(need, adapter, calls, low_memory=True) == max(need, own)


def test_the_image_is_made_again(
    pipe: Pipeline, xs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(xs.parent)
    EDGES.save(tmp_path / "edges.png")
    net = ControlNet(xs, tmp_path / "edges.png", 0.7, end=0.7)
    image = pipe(**CALL, controlnets=[net]).images[0]
    sdexport.save_image(image, tmp_path / "made.png")
    assert pipe.like(tmp_path / "made.png").images[0].tobytes() == image.tobytes()


def test_command_line(xs: Path, tmp_path: Path) -> None:
    EDGES.save(tmp_path / "edges.png")
    run = CliRunner().invoke
    arguments = ["generate", str(xs.parent / "package"), "a", "--steps", "2", "--size", "64x64"]
    further = ["--controlnet", f"{xs}:{tmp_path / 'edges.png'}:0.8", "-o", str(tmp_path / "o.png")]
    assert run(main, [*arguments, *further]).exit_code == 0
    shown = run(main, ["inspect", str(xs)]).output
    assert "controlnet-xs" in shown
    assert "base.sha256" in shown
    assert "conditioning_scale" in shown
    assert run(main, ["verify", str(xs)]).exit_code == 0
    found = run(main, [*arguments, *further, "--guess-mode", "--force"])
    assert "has no guess_mode" in found.stderr


@pytest.mark.parametrize(
    ("nets", "further", "message"),
    [
        ([{"guess_mode": True}], {}, "has no guess_mode"),
        ([{"mode": "canny"}], {}, "omit mode"),
        ([{}, {}], {}, "takes no other ControlNets"),
        ([{"image": [EDGES] * 2}], {"prompt": ["a"] * 3}, "2 control images"),
        ([{}], {"t2i_adapters": [sdexport.T2IAdapter("none", EDGES)]}, "takes no T2I-Adapters"),
        ([{}], {"ip_adapters": [sdexport.IPAdapter("none", EDGES)]}, "takes no IP-Adapters"),
    ],
    ids=["guess_mode", "mode", "two", "images", "t2i_adapter", "ip_adapter"],
)
def test_calls_that_it_does_not_fit(
    nets: list[dict[str, Any]], further: dict[str, Any], message: str, pipe: Pipeline, xs: Path
) -> None:
    used = [ControlNet(xs, **{"image": EDGES, **each}) for each in nets]
    with pytest.raises(InvalidArgumentError, match=message):
        pipe(**{**CALL, **further}, controlnets=used)


def test_with_another_controlnet_or_a_lora(
    xs: Path, lora_package: Path, control_folder: Path, tmp_path: Path
) -> None:
    unet = {"unet": Checkpoint.open(lora_package.parent / "checkpoint").load("unet")}
    lora = save_peft(tmp_path / "lora.safetensors", random_lora(unet, ATTENTION))
    both = [ControlNet(control_folder / "first", EDGES), ControlNet(xs, EDGES)]
    with load_pipeline(lora_package) as pipe:
        with pytest.raises(InvalidArgumentError, match=r"xs is a ControlNet-XS.* other Con"):
            pipe(**CALL, controlnets=both)
        with pytest.raises(InvalidArgumentError, match="LoRAs that change the UNet"):
            pipe(**CALL, controlnets=both[1:], loras=[lora])


def test_models_that_it_does_not_fit(xs: Path, lora_package: Path) -> None:
    with load_pipeline(lora_package) as pipe:
        with pytest.raises(InvalidArgumentError) as raised:
            pipe(**CALL, controlnets=[ControlNet(xs, EDGES)])
        text = str(raised.value)
        assert re.search(r"xs does not fit \S+package: .* another model .*--base", text)
        assert all(
            Package.load(folder).manifest.source[key][:12] in text
            for folder, key in ((xs, "base.sha256"), (lora_package, "sha256"))
        )
    with (
        load_pipeline(PACKAGE_DIR) as pipe,
        pytest.raises(InvalidArgumentError, match="of another family"),
    ):
        pipe(**CALL, controlnets=[ControlNet(xs, EDGES)])


def test_damaged_references(xs: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(xs.parent / "package", package)
    reference = package / "reference" / "unet.npz"
    reference.write_bytes(bytes(reference.stat().st_size))
    with (
        load_pipeline(package, verify=False) as pipe,
        pytest.raises(PackageError, match=r"reference/unet\.npz is damaged"),
    ):
        pipe(**CALL, controlnets=[ControlNet(xs, EDGES)])


def sample_of(model: Any) -> torch.Tensor:
    """What a fused model of diffusers gives for some input."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn((1, 77, model.config.cross_attention_dim), generator=generator)
    image = torch.rand((1, 3, 64, 64), generator=generator)
    with torch.inference_mode():
        result: torch.Tensor = model(
            torch.randn((1, 4, 8, 8), generator=generator),
            torch.tensor(500.0),
            texts,
            controlnet_cond=image,
        ).sample
    return result


def test_it_is_fused_as_diffusers_does(xs: Path) -> None:
    opened = open_adapter(xs.parent / "xs-net", base=xs.parent / "checkpoint")
    expected = fused_of(xs.parent)
    found = opened.load("controlnet")
    assert found.state_dict().keys() == expected.state_dict().keys()
    difference = (sample_of(found) - sample_of(expected)).abs().max()
    assert difference <= FUSED_UNET_ABS


def test_the_fused_folder(xs: Path, tmp_path: Path) -> None:
    """It holds the UNet; diffusers makes other groups of channels when it loads one."""
    made = fused_of(xs.parent)
    made.save_pretrained(tmp_path / "fused")
    expected = UNetControlNetXSModel.from_pretrained(tmp_path / "fused").eval()
    with pytest.raises(InvalidArgumentError, match="omit --base"):
        open_adapter(tmp_path / "fused", base=xs.parent / "checkpoint")
    found = open_adapter(tmp_path / "fused").load("controlnet")
    difference = (sample_of(found) - sample_of(expected)).abs().max()
    assert difference <= FUSED_UNET_ABS
    assert (sample_of(found) - sample_of(made)).abs().max() > 10 * FUSED_UNET_ABS


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("of_net", "of_unet", "message"),
    [
        ({"base_block_out_channels": [16, 64]}, {}, "xs-net: .*missing or of another shape"),
        ({"cross_attention_dim": 48}, {}, "missing or of another shape"),
        ({"conditioning_channel_order": "grb"}, {}, "unknown `conditioning_channel_order`"),
        ({"time_embedding_mix": 1.5}, {}, "needs to be between 0 and 1"),
        ({"time_embedding_mix": None}, {}, "does not fit"),
        ({"block_out_channels": "x"}, {}, "xs-net"),
        ({}, {"layers_per_block": 1}, "layers_per_block 1, and .* ControlNet-XS has 2"),
        ({}, {"norm_eps": 1e-4}, "norm_eps"),
        ({}, {"down_block_types": ["DownBlock2D"] * 2}, "down_block_types"),
        ({}, {"block_out_channels": [16, 64]}, "for another model than .*checkpoint"),
        ({}, {"in_channels": 9}, "in_channels 9"),
    ],
    ids=str,
)
def test_configurations_that_do_not_fit(
    of_net: dict[str, Any], of_unet: dict[str, Any], message: str, xs: Path, tmp_path: Path
) -> None:
    net, checkpoint = tmp_path / "xs-net", tmp_path / "checkpoint"
    shutil.copytree(xs.parent / "xs-net", net)
    shutil.copytree(xs.parent / "checkpoint", checkpoint)
    change(net, **of_net)
    change(checkpoint / "unet", **of_unet)
    with pytest.raises(sdexport.CheckpointError, match=message):
        export_adapter(net, tmp_path / "xs", base=checkpoint)
    assert not (tmp_path / "xs").exists()


def test_the_base_is_given_exactly_if_it_is_needed(
    xs: Path, control_folder: Path, tmp_path: Path
) -> None:
    folder = xs.parent
    for source, base, message in (
        (folder / "xs-net", None, "ControlNet-XS, .* --base CHECKPOINT"),
        (control_folder / "first-net", folder / "checkpoint", "no ControlNet-XS; omit --base"),
        (
            folder / "xs-net" / "diffusion_pytorch_model.safetensors",
            folder / "checkpoint",
            "is a file; omit --base",
        ),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            export_adapter(source, tmp_path / "xs", base=base)
    with pytest.raises(FileNotFoundError, match="none"):
        export_adapter(folder / "xs-net", tmp_path / "xs", base=folder / "none")
    with pytest.raises(sdexport.CheckpointError, match="file of a ControlNet-XS"):
        export_adapter(folder / "xs-net" / "diffusion_pytorch_model.safetensors", tmp_path / "xs")
