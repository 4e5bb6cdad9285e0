"""Field case C14: --vae with TAESD and other files; every weight is used or named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import save_file

from sdexport.checkpoints.sources import Options, open_source
from sdexport.engines.errors import CheckpointError
from tests.helpers.file_kinds import file_kind
from tests.helpers.linked_folder import linked_folder
from tests.helpers.original_layout import SMALL, random_modules, vae_layout

SMALL_TINY = {
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8),
    "num_encoder_blocks": (1, 2, 1),
    "num_decoder_blocks": (2, 1, 1),
}
SIZES = {"small": SMALL_TINY, "published": {}}


@pytest.fixture(params=SIZES)
def tiny(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(3)
    return AutoencoderTiny(**SIZES[request.param]).eval()


def original(module: Any, side: str) -> dict[str, torch.Tensor]:
    """The names of the author: the decoder begins with a clamp, which diffusers does not count."""
    found = {}
    for name, value in getattr(module, side).layers.state_dict().items():
        number, rest = name.split(".", 1)
        found[f"{int(number) + (side == 'decoder')}.{rest}"] = value.clone()
    return found


def assert_loads(checkpoint: Path, path: Path, expected: Any, **options: Any) -> None:
    opened = open_source(checkpoint, options=Options(vae=path, **options))
    loaded = opened.load("vae")
    assert type(loaded) is AutoencoderTiny
    state = loaded.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(state[name], v) for name, v in expected.state_dict().items())
    assert opened.index["vae"] == ["diffusers", "AutoencoderTiny"]
    assert opened.vae.latent_channels == 4 and opened.vae.scaling_factor == 1.0


@file_kind(
    "vae",
    "TAESD of its author",
    recognised="`taesd_encoder` and `taesd_decoder` in one folder, whose weights are numbered",
    result="loaded, both sides",
)
@pytest.mark.parametrize("given", ["encoder", "decoder"])
def test_c14_original_taesd(given: str, tiny: Any, checkpoint: Path, tmp_path: Path) -> None:
    for side in ("encoder", "decoder"):
        save_file(original(tiny, side), tmp_path / f"taesd_{side}.safetensors")
    assert_loads(checkpoint, tmp_path / f"taesd_{given}.safetensors", tiny)


def test_c14_original_taesd_as_pickles(tiny: Any, checkpoint: Path, tmp_path: Path) -> None:
    for side in ("encoder", "decoder"):
        torch.save(original(tiny, side), tmp_path / f"taesd_{side}.pth")
    path = tmp_path / "taesd_decoder.pth"
    assert_loads(checkpoint, path, tiny, allow_pickle=True)
    with pytest.raises(CheckpointError, match="give --allow-pickle"):
        open_source(checkpoint, options=Options(vae=path))


@file_kind(
    "vae",
    "TAESD in one file",
    recognised="`encoder.layers.*` and `decoder.layers.*`, or `taesd_encoder.*` and "
    "`taesd_decoder.*`",
    result="loaded",
)
@pytest.mark.parametrize("prefix", ["taesd_", "", None])
def test_c14_taesd_in_one_file(
    prefix: str | None, tiny: Any, checkpoint: Path, tmp_path: Path
) -> None:
    tensors = {name: value.clone() for name, value in tiny.state_dict().items()}
    if prefix is not None:
        sides = {side: original(tiny, side) for side in ("encoder", "decoder")}
        tensors = {f"{prefix}{side}.{n}": v for side in sides for n, v in sides[side].items()}
        tensors |= {"vae_scale": torch.tensor(0.18), "vae_shift": torch.tensor(0.0)}
    save_file(tensors, tmp_path / "tiny.safetensors")
    assert_loads(checkpoint, tmp_path / "tiny.safetensors", tiny)


def test_c14_taesd_folder(tiny: Any, checkpoint: Path, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    assert_loads(checkpoint, tmp_path, tiny)


@file_kind(
    "vae",
    "one side of a TAESD",
    recognised="a `taesd_decoder` without its `taesd_encoder`, or the other way round",
    result="rejected",
    says="into the same folder",
)
@pytest.mark.parametrize("name", ["taesd_decoder", "taesdxl_decoder", "mine"])
def test_c14_one_side_alone(name: str, says: str, checkpoint: Path, tmp_path: Path) -> None:
    tiny = AutoencoderTiny(**SMALL_TINY)
    path = tmp_path / f"{name}.safetensors"
    save_file(original(tiny, "decoder"), path)
    with pytest.raises(CheckpointError, match=f"TAESD's decoder alone; put its .* {says}") as error:
        open_source(checkpoint, options=Options(vae=path))
    assert "\n" not in str(error.value)
    save_file(
        original(tiny, "decoder"), tmp_path / f"{name.replace('decoder', 'encoder')}.safetensors"
    )
    if name != "mine":
        with pytest.raises(CheckpointError, match="is not TAESD's encoder"):
            open_source(checkpoint, options=Options(vae=path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"3.conv.0.weight": None}, "missing or of another shape"),
        ({"99.weight": torch.ones(1)}, "missing or of another shape"),
        ({"extra.weight": torch.ones(1)}, r"1 weight \(extra.weight\) would not be used"),
        ({"1.weight": torch.ones(8, 16, 3, 3)}, "missing or of another shape"),
    ],
)
def test_c14_damaged_taesd(
    change: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    tiny = AutoencoderTiny(**SMALL_TINY)
    save_file(original(tiny, "encoder"), tmp_path / "taesd_encoder.safetensors")
    tensors = original(tiny, "decoder") | change
    path = tmp_path / "taesd_decoder.safetensors"
    save_file({k: v for k, v in tensors.items() if v is not None}, path)
    with pytest.raises(CheckpointError, match=message) as error:
        open_source(checkpoint, options=Options(vae=path))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_c14_name_of_another_family(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = AutoencoderTiny(**SMALL_TINY)
    for side in ("encoder", "decoder"):
        save_file(original(tiny, side), tmp_path / f"taesdxl_{side}.safetensors")
    open_source(checkpoint, options=Options(vae=tmp_path / "taesdxl_decoder.safetensors"))
    assert "by its name it is made for SDXL" in caplog.text


@file_kind(
    "vae",
    "VAE in the original layout",
    recognised="`encoder.down.*`, also below `first_stage_model.`; `.safetensors`, `.pt`, `.ckpt`",
    result="loaded",
)
@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [("", ".safetensors"), ("first_stage_model.", ".vae.pt"), ("vae.", ".ckpt")],
)
def test_c14_original_vae(prefix: str, suffix: str, checkpoint: Path, tmp_path: Path) -> None:
    vae = random_modules(SMALL[0], seed=5)["vae"]
    tensors = {f"{prefix}{k}": v.contiguous().clone() for k, v in vae_layout(vae).items()}
    tensors |= {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.ones(())}
    path = tmp_path / f"vae{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors, "epoch": 1}, path)
    vae.save_pretrained(tmp_path / "vae")
    base = _with_vae(checkpoint, tmp_path)
    state = open_source(base, options=Options(vae=path, allow_pickle=True)).load("vae").state_dict()
    assert all(torch.equal(state[name], v) for name, v in vae.state_dict().items())


@file_kind(
    "vae",
    "VAE with other weights in it",
    recognised="weights that no VAE of that configuration has",
    result="rejected",
    says="would not be used by the VAE",
)
@pytest.mark.parametrize("name", ["decoder.time_stack.weight", "extra.weight"])
def test_c14_weights_left_over(name: str, says: str, checkpoint: Path, tmp_path: Path) -> None:
    vae = random_modules(SMALL[0], seed=5)["vae"]
    vae.save_pretrained(tmp_path / "vae")
    base = _with_vae(checkpoint, tmp_path)
    tensors = {k: v.contiguous().clone() for k, v in vae_layout(vae).items()}
    save_file({**tensors, name: torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"1 weight \({re.escape(name)}\) {says}"):
        open_source(base, options=Options(vae=tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("sdxl_vae", {}, "by its name it is made for SDXL; colours may be wrong"),
        ("model", {"conditioner.embedders.0.x": torch.ones(1)}, "whole checkpoint, made for SDXL"),
        ("vae-ft-mse-840000-ema-pruned", {}, ""),
    ],
)
def test_c14_vae_of_another_family(
    name: str,
    extra: dict[str, torch.Tensor],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The VAEs of SD 1 and SDXL have the same shapes, and other latents."""
    vae = random_modules(SMALL[0], seed=5)["vae"]
    vae.save_pretrained(tmp_path / "vae")
    path = tmp_path / f"{name}.safetensors"
    layout = vae_layout(vae).items()
    save_file({f"first_stage_model.{k}": v.contiguous() for k, v in layout} | extra, path)
    open_source(_with_vae(checkpoint, tmp_path), options=Options(vae=path))
    assert message in caplog.text and bool(message) == bool(caplog.records)


@file_kind(
    "vae",
    "VAE with other latents (SD 3, Flux: 16 channels)",
    recognised="`latent_channels` of its configuration, or the shape of `decoder.conv_in.weight`",
    result="rejected",
    says="its latents have 16 channels, the checkpoint's 4",
)
@pytest.mark.parametrize("folder", [False, True])
def test_c14_vae_with_other_latents(
    folder: bool, says: str, checkpoint: Path, tmp_path: Path
) -> None:
    config = {**SMALL[0].vae, "latent_channels": 16}
    vae = AutoencoderKL(**config)
    if folder:
        vae.save_pretrained(tmp_path / "flux")
    path = tmp_path / "flux" if folder else tmp_path / "ae.safetensors"
    if not folder:
        save_file({k: v.contiguous() for k, v in vae_layout(vae).items()}, path)
    with pytest.raises(CheckpointError, match=f"{path}: {says}.*such as SD 3 or Flux"):
        open_source(checkpoint, options=Options(vae=path))


def _with_vae(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with the VAE of a folder."""
    target = linked_folder(checkpoint, folder / "base")
    shutil.rmtree(target / "vae")
    (target / "vae").symlink_to(folder / "vae")
    return target
