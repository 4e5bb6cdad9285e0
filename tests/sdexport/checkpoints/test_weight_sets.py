"""Field case C9: folders of pickles or of variants alone; the message says what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.replacement_vae import ReplacementVae
from sdexport.checkpoints.sources import Options, open_source
from sdexport.engines.errors import CheckpointError, InvalidArgumentError
from tests.helpers.file_kinds import file_kind
from tests.helpers.linked_folder import linked_folder

STEMS = {"text_encoder": "model", "unet": "diffusion_pytorch_model"}
STEMS["vae"] = STEMS["unet"]
PARTS = tuple(STEMS)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return linked_folder(checkpoint, tmp_path / "checkpoint")


def path_of(folder: Path, part: str, variant: str = "") -> Path:
    return folder / part / f"{STEMS[part]}{variant}.safetensors"


def as_pickles(folder: Path, *, shards: bool = False) -> None:
    """The weights under the names of .bin files, as older checkpoints have them."""
    for part in PARTS:
        tensors = load_file(path_of(folder, part))
        path_of(folder, part).unlink()
        stem = "pytorch_model" if part == "text_encoder" else STEMS[part]
        names = sorted(tensors)
        files = {f"{stem}.bin": names}
        if shards:
            files = {
                f"{stem}-00001-of-00002.bin": names[::2],
                f"{stem}-00002-of-00002.bin": names[1::2],
            }
            index = {"weight_map": {key: file for file, keys in files.items() for key in keys}}
            (folder / part / f"{stem}.bin.index.json").write_text(json.dumps(index))
        for file, keys in files.items():
            torch.save({key: tensors[key] for key in keys}, folder / part / file)


def assert_loads(opened: Checkpoint, modules: dict[str, Any], dtype: torch.dtype) -> None:
    for part in PARTS:
        state = opened.load(part).state_dict()
        for name, value in modules[part].state_dict().items():
            assert torch.equal(state[name], value.to(dtype).float()), name


@file_kind(
    "checkpoint",
    "diffusers folder with `.bin` weights",
    recognised="`diffusion_pytorch_model.bin` and `pytorch_model.bin`, whole or in shards",
    result="loaded with `--allow-pickle`, otherwise rejected",
    says="a pickle can run programs; give --allow-pickle",
)
@pytest.mark.parametrize("shards", [False, True])
def test_c9_pickles(shards: bool, says: str, copy: Path, modules: dict[str, Any]) -> None:
    as_pickles(copy, shards=shards)
    with pytest.raises(CheckpointError, match=says) as error:
        open_source(copy)
    assert "text_encoder: its weights are in pytorch_model.bin" in str(error.value)
    opened = open_source(copy, options=Options(allow_pickle=True))
    assert_loads(opened, modules, torch.float32)
    assert len(opened.source["sha256"]) == 64
    changed = Options(allow_pickle=True, prediction_type="epsilon")
    assert_loads(open_source(copy, options=changed), modules, torch.float32)


def test_c9_pickle_that_holds_more_than_weights(copy: Path) -> None:
    as_pickles(copy)
    torch.save({"a": Path("x")}, copy / "unet" / "diffusion_pytorch_model.bin")
    opened = open_source(copy, options=Options(allow_pickle=True))
    with pytest.raises(CheckpointError, match="holds more than weights") as error:
        opened.load("unet")
    assert "\n" not in str(error.value)


def test_c9_safetensors_come_before_pickles(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"damaged")
    open_source(copy, options=Options(allow_pickle=True)).load("unet")


@file_kind(
    "checkpoint",
    "diffusers folder with a variant alone",
    recognised="`*.fp16.safetensors`, `*.bf16.safetensors` and others, and no plain weights",
    result="loaded; of several the one of `--variant`",
)
@pytest.mark.parametrize(("variant", "dtype"), [("bf16", torch.bfloat16), ("non_ema", None)])
def test_c9_variant_alone(
    variant: str, dtype: torch.dtype | None, copy: Path, modules: dict[str, Any]
) -> None:
    for part in PARTS:
        tensors = load_file(path_of(copy, part))
        path_of(copy, part).unlink()
        changed = {k: v.to(dtype or v.dtype) for k, v in tensors.items()}
        save_file(changed, path_of(copy, part, f".{variant}"))
    assert_loads(open_source(copy), modules, dtype or torch.float32)


def test_c9_several_variants(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = load_file(path_of(copy, "unet"))
    path_of(copy, "unet").unlink()
    for variant, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        save_file(
            {k: v.to(dtype) for k, v in tensors.items()}, path_of(copy, "unet", f".{variant}")
        )
    with pytest.raises(CheckpointError, match=r"several variants; give --variant .* bf16, fp16"):
        open_source(copy)
    with pytest.raises(CheckpointError, match=r"of variant fp8; variants there: bf16, fp16"):
        open_source(copy, options=Options(variant="fp8"))
    opened = open_source(copy, options=Options(variant="fp16"))
    state = opened.load("unet").state_dict()
    assert torch.equal(state["conv_in.weight"], tensors["conv_in.weight"].half().float())
    opened.load("vae")
    assert "vae has no variant fp16; its plain weights are used" in caplog.text


def test_c9_variant_instead_of_plain_weights(copy: Path) -> None:
    tensors = load_file(path_of(copy, "vae"))
    save_file({k: v * 0 for k, v in tensors.items()}, path_of(copy, "vae", ".zero"))
    vae = open_source(copy, options=Options(variant="zero")).load("vae")
    assert not any(weight.any() for weight in vae.parameters())
    with pytest.raises(InvalidArgumentError, match="is a file; omit --variant"):
        open_source(path_of(copy, "vae"), options=Options(variant="zero"))


@pytest.mark.parametrize("names", [(), ("flax_model.msgpack", "unet.onnx")])
def test_c9_message_says_what_is_there(names: tuple[str, ...], copy: Path) -> None:
    path_of(copy, "unet").unlink()
    for name in names:
        (copy / "unet" / name).write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        open_source(copy, options=Options(allow_pickle=True))
    assert "unet: missing diffusion_pytorch_model.safetensors" in str(error.value)
    assert all(name in str(error.value) for name in names)


def test_c9_shards_that_contradict_each_other(copy: Path) -> None:
    tensors = load_file(path_of(copy, "unet"))
    whole = path_of(copy, "unet")
    for i, file in enumerate(("a.safetensors", "b.safetensors")):
        save_file({k: v + i for k, v in tensors.items()}, copy / "unet" / file)
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index))
    whole.unlink()
    with pytest.raises(CheckpointError, match="another shard holds another"):
        open_source(copy).load("unet")


@pytest.mark.parametrize("variant", ["", ".bf16"])
def test_c9_replacement_vae(variant: str, copy: Path, modules: dict[str, Any]) -> None:
    """--vae FOLDER finds its weights in the same way."""
    path = path_of(copy, "vae")
    path.rename(path_of(copy, "vae", variant))
    vae = ReplacementVae.open(copy, copy)
    state = vae.load().state_dict()
    expected = modules["vae"].state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    tensors = load_file(path_of(copy, "vae", variant))
    path_of(copy, "vae", variant).unlink()
    torch.save(tensors, copy / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="give --allow-pickle"):
        ReplacementVae.open(copy, copy)
    ReplacementVae.open(copy, copy, allow_pickle=True)
