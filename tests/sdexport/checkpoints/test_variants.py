"""Folders and hub repositories whose weights go by other names: half precision, shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.weight_sets import weight_files
from sdexport.engines.errors import CheckpointError

PARTS = ("text_encoder", "unet", "vae")


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


def half(modules: dict[str, Any], folder: Path, shard: str = "10GB") -> None:
    """Half-precision weights in place of the others."""
    for part in PARTS:
        next((folder / part).glob("*.safetensors")).unlink()
        module = type(modules[part]).from_pretrained(folder.parent / "original" / part)
        module.half().save_pretrained(folder / part, variant="fp16", max_shard_size=shard)


@pytest.mark.parametrize("shard", ["10GB", "200KB"])
def test_half_precision_is_taken_where_there_is_no_other(
    shard: str, copy: Path, checkpoint: Path, modules: dict[str, Any]
) -> None:
    shutil.copytree(checkpoint, copy.parent / "original")
    half(modules, copy, shard)
    names = [f.name for f in weight_files(copy, "unet")]
    assert all("fp16" in name for name in names) and (len(names) > 1) == (shard == "200KB")
    opened = Checkpoint.open(copy)
    for part in PARTS:
        state = opened.load(part).state_dict()
        for name, value in modules[part].state_dict().items():
            assert state[name].dtype == torch.float32
            assert torch.equal(state[name], value.half().float())


def test_full_precision_comes_first(copy: Path) -> None:
    whole = weight_files(copy, "unet")[0]
    (copy / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"damaged")
    assert weight_files(copy, "unet") == [whole]
    Checkpoint.open(copy).load("unet")


def test_missing_weights_are_named_by_their_first_name(copy: Path) -> None:
    weight_files(copy, "vae")[0].unlink()
    with pytest.raises(CheckpointError, match=r"vae: missing diffusion_pytorch_model\.safe"):
        Checkpoint.open(copy)


def test_hub_repository_in_half_precision_alone(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first download leaves half precision out, the second one fetches what is missing."""
    unet = weight_files(copy, "unet")[0]
    hidden = unet.rename(copy / "elsewhere")
    calls: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        calls.append(options)
        if len(calls) == 2:
            hidden.rename(unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
        return str(copy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    opened = Checkpoint.open("name/model", revision="main")
    assert opened.source == {"type": "hub", "id": "name/model", "revision": copy.name}
    assert "*.fp16.*" in calls[0]["ignore_patterns"] and calls[0]["revision"] == "main"
    assert calls[1] == {"revision": copy.name, "allow_patterns": ["unet/*.fp16*"]}
    opened.load("unet")


@pytest.mark.parametrize(
    ("options", "patterns"),
    [
        ({"variant": "bf16"}, ["unet/*.bf16*"]),
        ({}, ["unet/*.fp16*", "unet/*.safetensors"]),
        ({"allow_pickle": True}, ["unet/*.fp16*", "unet/*.safetensors", "unet/*.bin*"]),
    ],
)
def test_hub_repository_with_other_weights(
    options: dict[str, Any], patterns: list[str], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Field case C9: what was not downloaded first is asked for until the weights are there."""
    hidden = weight_files(copy, "unet")[0].rename(copy / "elsewhere")
    calls: list[dict[str, Any]] = []

    def download(name: str, **arguments: Any) -> str:
        calls.append(arguments)
        if len(calls) > 1 and patterns[-1] in arguments["allow_patterns"]:
            names = {"bf16": "diffusion_pytorch_model.bf16.safetensors", None: "odd.safetensors"}
            hidden.rename(copy / "unet" / names[options.get("variant")])
        return str(copy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    if "variant" in options:
        Checkpoint.open("name/model", **options)
    else:
        with pytest.raises(CheckpointError, match=r"holds .*odd\.safetensors"):
            Checkpoint.open("name/model", **options)
    asked = [pattern for call in calls[1:] for pattern in call["allow_patterns"]]
    assert [pattern for pattern in asked if pattern.startswith("unet/")] == patterns
