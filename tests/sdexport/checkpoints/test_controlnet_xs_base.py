"""The model of a ControlNet-XS: a single file, the options of --base, and UNets with levels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import save_file

from sdexport import CheckpointError, InvalidArgumentError
from sdexport.adapter_exporter import export_adapter
from sdexport.checkpoints.adapter_source import open_adapter
from sdexport.checkpoints.base_model import BaseOptions
from sdexport.checkpoints.published_configs import SingleFileFamily
from sdexport.checkpoints.state_dicts import ema_name
from sdexport.graphs.controlnet_xs_parts import BaseUNet, FusedUNet, controlnet_xs_parts
from tests.helpers.control_xs import random_xs
from tests.helpers.original_layout import (
    SMALL,
    original_layout,
    random_modules,
    unet_layout,
    use_families,
)
from tests.tolerances import FUSED_UNET_ABS, assert_close

BASES = SMALL[:3]
WITHOUT_VAE = ("text_encoder", "text_encoder_2", "unet")


@dataclass(frozen=True)
class Made:
    """A UNet, a ControlNet-XS for it in the folder `net`, and both fused by diffusers."""

    family: SingleFileFamily
    unet: Any
    net: Path
    expected: Any


@pytest.fixture(scope="module", params=BASES, ids=lambda family: family.name)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("base")
    family = request.param
    unet = random_modules(family)["unet"]
    unet.save_pretrained(folder / "unet")
    channels = [each // 2 for each in unet.config.block_out_channels]
    adapter = random_xs(folder, block_out_channels=channels)
    adapter.save_pretrained(folder / "net")
    expected = diffusers.UNetControlNetXSModel.from_unet(unet, adapter).eval()
    return Made(family, unet, folder / "net", expected)


@pytest.fixture(autouse=True)
def small_families(monkeypatch: pytest.MonkeyPatch) -> None:
    use_families(monkeypatch, SMALL)


def file_of(
    family: SingleFileFamily, path: Path, further: dict[str, torch.Tensor] | None = None
) -> Path:
    """A single file of a model, without a VAE."""
    modules = {k: v for k, v in random_modules(family).items() if k in WITHOUT_VAE}
    save_file(original_layout(family, modules) | (further or {}), path)
    return path


def assert_same_weights(found: Any, expected: Any) -> None:
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())


def test_single_file(made: Made, tmp_path: Path) -> None:
    """It has no tokenizer and no VAE, as only its UNet is read."""
    file = file_of(made.family, tmp_path / "model.safetensors")
    opened = open_adapter(made.net, base=file)
    assert opened.source["base.type"] == "file"
    assert len(opened.source["base.sha256"]) == 64
    assert_same_weights(opened.load("controlnet"), made.expected)


def inputs_of(made: Made, *sides: int) -> dict[str, torch.Tensor]:
    """Random inputs of a UNet, by name."""
    generator = torch.Generator().manual_seed(0)
    config = made.unet.config
    inputs = {
        "sample": torch.randn((2, 4, *sides), generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(
            (2, 7, config.cross_attention_dim), generator=generator
        ),
    }
    if config.addition_embed_type:
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["text_embeds"] = torch.randn((2, width), generator=generator)
        inputs["time_ids"] = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    return inputs


def added_of(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    return {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs} or None


def control_of(made: Made, *sides: int) -> torch.Tensor:
    return torch.rand((2, 3, *(8 * side for side in sides)), generator=torch.Generator())


@torch.inference_mode()
def test_graph_computes_what_diffusers_does(made: Made) -> None:
    inputs, control = inputs_of(made, 16, 8), control_of(made, 16, 8)
    fused = controlnet_xs_parts(made.expected.config)[1].wrap(made.expected)
    assert isinstance(fused, FusedUNet)
    scale = torch.tensor([0.7])
    embedding = made.expected.controlnet_cond_embedding(control)
    found = fused(**inputs, control_embedding=embedding, conditioning_scale=scale)
    expected = made.expected(
        inputs["sample"],
        inputs["timestep"],
        inputs["encoder_hidden_states"],
        controlnet_cond=control,
        conditioning_scale=0.7,
        added_cond_kwargs=added_of(inputs),
    ).sample
    assert_close(found.numpy(), expected.numpy(), abs_=FUSED_UNET_ABS)


@torch.inference_mode()
@pytest.mark.parametrize("sides", [(9, 7), (8, 10)])
def test_sides_that_cannot_be_halved(sides: tuple[int, int], made: Made) -> None:
    """diffusers' fused model fails then; without an effect of the control it is the UNet."""
    inputs = inputs_of(made, *sides)
    unet = diffusers.UNet2DConditionModel.from_config(made.unet.config).eval()
    unet.load_state_dict(made.unet.state_dict())

    def expected() -> Any:
        added, names = added_of(inputs), ("sample", "timestep", "encoder_hidden_states")
        return unet(*(inputs[name] for name in names), added_cond_kwargs=added).sample.numpy()

    part = controlnet_xs_parts(made.expected.config)[1]
    base = BaseUNet(made.expected, part.conditioning)(**inputs)
    assert_close(base.numpy(), expected(), abs_=FUSED_UNET_ABS)
    embedding = made.expected.controlnet_cond_embedding(control_of(made, *sides))
    fused = part.wrap(made.expected)
    found = fused(**inputs, control_embedding=embedding, conditioning_scale=torch.zeros(1))
    for block in unet.modules():
        if isinstance(block, ResnetBlock2D):
            block.norm1.eps = block.norm2.eps = 1e-6  # as diffusers' fused model has it
    assert_close(found.numpy(), expected(), abs_=FUSED_UNET_ABS)


def sd1(tmp_path: Path) -> tuple[Path, Any]:
    """The folder of a ControlNet-XS for the small SD 1, and that UNet."""
    unet = random_modules(SMALL[0])["unet"]
    unet.save_pretrained(tmp_path / "unet")
    random_xs(tmp_path, block_out_channels=[8, 8, 16, 16]).save_pretrained(tmp_path / "net")
    return tmp_path / "net", unet


def test_averaged_weights(tmp_path: Path) -> None:
    net, _ = sd1(tmp_path)
    averaged = random_modules(SMALL[0], seed=1)["unet"]
    names = {f"model.diffusion_model.{k}": v for k, v in unet_layout(averaged).items()}
    further = {ema_name(name): value.contiguous() for name, value in names.items()}
    file = file_of(SMALL[0], tmp_path / "model.safetensors", further)
    opened = open_adapter(net, base=file, base_options=BaseOptions(ema=True))
    assert opened.source["base.weights"] == "ema"
    adapter = diffusers.ControlNetXSAdapter.from_pretrained(net)
    expected = diffusers.UNetControlNetXSModel.from_unet(averaged, adapter)
    assert_same_weights(opened.load("controlnet"), expected)


def test_models_and_options_that_do_not_fit(tmp_path: Path) -> None:
    net, _ = sd1(tmp_path)
    file = file_of(SMALL[0], tmp_path / "model.safetensors")
    (tmp_path / "folder").mkdir()
    for base, options, message in (
        (file, {"base_variant": "fp16"}, "is a file; omit --base-variant"),
        (file, {"base_revision": "main"}, "is a file; omit --base-revision"),
        (tmp_path / "folder", {"base_ema": True}, "not a single file; omit --base-ema"),
        (None, {"base_ema": True}, "no --base is given; omit --base-ema"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            export_adapter(net, tmp_path / "xs", base=base, **options)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        open_adapter(net, base=file, base_options=BaseOptions(ema=True))
    refiner = file_of(SMALL[3], tmp_path / "refiner.safetensors")
    with pytest.raises(CheckpointError, match="a refiner has no ControlNet-XS"):
        open_adapter(net, base=refiner)
    with pytest.raises(CheckpointError, match="for another model than"):
        open_adapter(net, base=file_of(SMALL[2], tmp_path / "xl.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        open_adapter(net, base=file)
