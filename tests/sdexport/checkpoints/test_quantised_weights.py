"""Field case C2: float8 with scales is converted as it was meant, other kinds are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.single_file import SingleFile
from sdexport.engines.errors import CheckpointError
from tests.helpers.file_kinds import file_kind
from tests.helpers.linked_folder import linked_folder
from tests.helpers.original_layout import SMALL, original_layout, random_modules
from tests.tolerances import FLOAT8_REL

SD1, SD2, SDXL, REFINER = SMALL
Tensors = dict[str, torch.Tensor]
UNET = "model.diffusion_model."


def scaled(
    tensors: Tensors, suffix: str, *, rows: bool = False, dtype: torch.dtype = torch.float8_e4m3fn
) -> Tensors:
    """Every matrix in float8 with a scale that brings its largest value to the type's largest."""
    found = dict(tensors)
    for name, value in tensors.items():
        if not name.endswith(".weight") or value.ndim < 2:
            continue
        size = value.abs().flatten(1).amax(1) if rows else value.abs().max()
        scale = size / torch.finfo(dtype).max
        shape = (-1, *[1] * (value.ndim - 1)) if rows else ()
        found[name] = (value / scale.reshape(shape)).to(dtype)
        found[f"{name.removesuffix('.weight')}.{suffix}"] = scale
    return found


def assert_loads_like(path: Path, expected: dict[str, Any], **options: Any) -> None:
    opened = SingleFile.open(path, families=SMALL, **options)
    for part, module in expected.items():
        state = opened.load(part).state_dict()
        for name, value in module.state_dict().items():
            limit = FLOAT8_REL * value.abs().max()
            assert (state[name].float() - value).abs().max() <= limit, name


@file_kind(
    "checkpoint",
    "float8 with a scale for each layer",
    recognised="`.scale_weight` or `.weight_scale` next to float8 weights",
    result="loaded, each weight times its scale",
)
@pytest.mark.parametrize(
    ("family", "suffix", "rows"),
    [
        (SD1, "scale_weight", False),
        (SD1, "weight_scale", True),
        (SD2, "weight_scale", False),
        (SDXL, "weight_scale", False),
    ],
)
def test_c2_scaled_float8(family: Any, suffix: str, rows: bool, tmp_path: Path) -> None:
    """Text encoders and the VAE too: the scale belongs to the weight, whatever its prefix is."""
    modules = random_modules(family)
    tensors = scaled(original_layout(family, modules), suffix, rows=rows)
    assert any(value.dtype == torch.float8_e4m3fn for value in tensors.values())
    save_file(tensors, tmp_path / "a.safetensors")
    assert_loads_like(tmp_path / "a.safetensors", modules)


def test_c2_marks_of_comfyui(tmp_path: Path) -> None:
    modules = random_modules(SDXL)
    tensors = scaled(original_layout(SDXL, modules), "weight_scale", dtype=torch.float8_e5m2)
    for name in [n for n in tensors if n.endswith("weight_scale")]:
        layer = name.removesuffix(".weight_scale")
        text = json.dumps({"format": "float8_e5m2", "full_precision_matrix_mult": True})
        tensors[f"{layer}.comfy_quant"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
        tensors[f"{layer}.input_scale"] = torch.tensor(1.0)
    tensors[f"{UNET}scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e5m2)
    layers = {f"{UNET}out.2": {"format": "float8_e5m2"}}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    assert_loads_like(tmp_path / "a.safetensors", {"unet": modules["unet"]})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_c2_plain_float8(dtype: torch.dtype, tmp_path: Path) -> None:
    modules = random_modules(SD1)
    tensors = original_layout(SD1, modules)
    save_file({k: v.to(dtype) for k, v in tensors.items()}, tmp_path / "a.safetensors")
    opened = SingleFile.open(tmp_path / "a.safetensors", families=SMALL)
    for part, module in modules.items():
        state = opened.load(part).state_dict()
        for name, value in module.state_dict().items():
            assert torch.equal(state[name].float(), value.to(dtype).float()), name


def test_c2_large_float8_weights_stay_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 holds every float8 value, so large layers are kept in half precision."""
    monkeypatch.setattr("sdexport.checkpoints.modules.LARGE", 100)
    tensors = original_layout(SD1, random_modules(SD1))
    save_file(
        {k: v.to(torch.float8_e4m3fn) for k, v in tensors.items()}, tmp_path / "a.safetensors"
    )
    unet = SingleFile.open(tmp_path / "a.safetensors", families=SMALL).load("unet")
    weight = unet.conv_in.weight
    assert weight.dtype == torch.float16
    stored = tensors[f"{UNET}input_blocks.0.0.weight"].to(torch.float8_e4m3fn)
    assert torch.equal(weight.float(), stored.float())


def test_c2_scaled_float8_in_a_folder(
    checkpoint: Path, modules: dict[str, Any], tmp_path: Path
) -> None:
    linked_folder(checkpoint, tmp_path)
    for part in ("text_encoder", "unet", "vae"):
        (path,) = (tmp_path / part).glob("*.safetensors")
        tensors = scaled(load_file(path), "weight_scale")
        path.unlink()
        save_file(tensors, path)
        state = Checkpoint.open(tmp_path).load(part).state_dict()
        for name, value in modules[part].state_dict().items():
            assert (state[name] - value).abs().max() <= FLOAT8_REL * value.abs().max(), name


def _first(tensors: Tensors) -> str:
    return f"{UNET}input_blocks.1.0.in_layers.2"


def _add(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {f"{_first(tensors)}.{name}": torch.ones(4) for name in names}


def _blocks(tensors: Tensors) -> Tensors:
    return {f"{_first(tensors)}.weight_scale": torch.ones(3, 5)}


def _comfy(name: str) -> Callable[[Tensors], Tensors]:
    text = json.dumps({"format": name}).encode()
    value = torch.tensor(list(text), dtype=torch.uint8)
    return lambda tensors: {f"{_first(tensors)}.comfy_quant": value}


@file_kind(
    "checkpoint",
    "quantised in another way",
    recognised="names such as `.absmax`, `.SCB`, `.qweight`, `.weight_scale_2`, `.comfy_quant`; "
    "integer weights",
    result="rejected",
    says="export the float16 or float32 one",
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_add("weight.absmax", "weight.quant_map"), "bitsandbytes in 4 bits"),
        (_add("weight.quant_state.bitsandbytes__nf4"), "bitsandbytes in 4 bits"),
        (_add("SCB"), "bitsandbytes in int8"),
        (_add("qweight", "qzeros", "scales"), "GPTQ or AWQ"),
        (_add("wscales"), "SVDQuant"),
        (_add("weight_scale", "weight_scale_2"), "two scales"),
        (_add("weight_scale_inv"), "a scale for each block"),
        (_add("weight._data", "weight._scale"), "quanto or torchao"),
        (_blocks, "a scale for each block"),
        (_comfy("nvfp4"), "quantised as nvfp4"),
        (_comfy("int8_blockwise"), "quantised as int8_blockwise"),
        (lambda t: {f"{_first(t)}.weight": torch.ones(16, 16, 3, 3, dtype=torch.int8)}, "int8"),
        (
            lambda t: {
                f"{_first(t)}.weight": torch.ones(16, 16, 3, 3, dtype=torch.int8),
                f"{_first(t)}.weight_scale": torch.ones(()),
            },
            "scales a weight of torch.int8",
        ),
    ],
)
def test_c2_other_quantisation_is_named(
    change: Callable[[Tensors], Tensors], message: str, says: str, tmp_path: Path
) -> None:
    tensors = original_layout(SD1, random_modules(SD1))
    save_file(tensors | change(tensors), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as error:
        SingleFile.open(tmp_path / "a.safetensors", families=SMALL)
    assert message in str(error.value) and says in str(error.value)
    assert "\n" not in str(error.value) and "a.safetensors" in str(error.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xff", b'{"a": 1}'])
def test_c2_damaged_marks(text: bytes, tmp_path: Path) -> None:
    tensors = original_layout(SD1, random_modules(SD1))
    mark = torch.tensor(list(text), dtype=torch.uint8)
    save_file(tensors | {f"{_first(tensors)}.comfy_quant": mark}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="cannot read how it is quantised"):
        SingleFile.open(tmp_path / "a.safetensors", families=SMALL)


def test_c2_scale_without_its_weight_is_named(tmp_path: Path) -> None:
    tensors = original_layout(SD1, random_modules(SD1))
    save_file(tensors | {f"{UNET}gone.scale_weight": torch.ones(())}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"1 weight \(model\.diffusion_model\.gone\.scale"):
        SingleFile.open(tmp_path / "a.safetensors", families=SMALL)


@pytest.mark.parametrize("scale", [torch.nan, torch.inf])
def test_c2_scale_that_is_not_finite(scale: float, tmp_path: Path) -> None:
    tensors = scaled(original_layout(SD1, random_modules(SD1)), "weight_scale")
    name = next(n for n in tensors if n.startswith(UNET) and n.endswith("weight_scale"))
    save_file(tensors | {name: torch.tensor(scale)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"weight_scale"):
        SingleFile.open(tmp_path / "a.safetensors", families=SMALL)
