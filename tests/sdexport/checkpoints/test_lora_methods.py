"""Every method of LoRA files merges to the weight that LyCORIS computes (row C12)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sdexport.checkpoints.lora import Lora
from tests.helpers.file_kinds import file_kind
from tests.helpers.lycoris_layers import merged, random_layer, stored
from tests.helpers.original_layout import SMALL, random_modules
from tests.tolerances import LYCORIS_ABS

MODULES = {k: v for k, v in random_modules(SMALL[0]).items() if k != "vae"}
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LAYERS = {
    "unet": (
        "conv_in",
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.0.resnets.0.time_emb_proj",
        "down_blocks.0.attentions.0.proj_in",
        f"{BLOCK}.attn1.to_q",
        f"{BLOCK}.attn2.to_k",
        f"{BLOCK}.attn2.to_out.0",
        f"{BLOCK}.ff.net.0.proj",
        "up_blocks.0.resnets.0.conv_shortcut",
        "down_blocks.0.downsamplers.0.conv",
    ),
    "text_encoder": (
        "encoder.layers.0.self_attn.q_proj",
        "encoder.layers.1.self_attn.out_proj",
        "encoder.layers.1.mlp.fc1",
    ),
}
NORMS = {
    "unet": ("down_blocks.0.resnets.0.norm1", f"{BLOCK}.norm2", "conv_norm_out"),
    "text_encoder": ("encoder.layers.0.layer_norm1", "final_layer_norm"),
}
SCALES = pytest.mark.parametrize(
    "scale", [0.7, *(pytest.param(s, marks=pytest.mark.slow) for s in (1.0, -0.5))]
)
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}


def check(
    tmp_path: Path, method: str, scale: float, layers: dict[str, tuple[str, ...]], **options: Any
) -> None:
    """Compare a file of LyCORIS modules, merged, with the modules."""
    tensors: dict[str, torch.Tensor] = {}
    expected: dict[tuple[str, str], Any] = {}
    for part, names in layers.items():
        for seed, name in enumerate(names):
            layer = copy.deepcopy(MODULES[part].get_submodule(name))
            module = random_layer(method, layer, seed, **options)
            key = PREFIXES[part] + name.replace(".", "_")
            tensors |= {f"{key}.{k}": v for k, v in stored(module).items()}
            expected[part, name] = merged(module, scale)
    path = tmp_path / "lycoris.safetensors"
    save_file(tensors, path)
    modules = copy.deepcopy(MODULES)
    lora = Lora.open(path, scale, modules)
    assert sum(map(len, lora.layers.values())) == len(expected)
    for part, module in modules.items():
        lora.merge_into(part, module)
    for (part, name), (weight, bias) in expected.items():
        layer = modules[part].get_submodule(name)
        before = MODULES[part].get_submodule(name)
        assert not torch.allclose(weight, before.weight, atol=LYCORIS_ABS, rtol=0), name
        assert torch.allclose(layer.weight, weight, atol=LYCORIS_ABS, rtol=0), name
        wanted = before.bias if bias is None else bias
        assert wanted is None or torch.allclose(layer.bias, wanted, atol=LYCORIS_ABS, rtol=0)


@SCALES
@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param(
            "locon",
            {},
            marks=file_kind(
                "lora",
                "LoCon (LoRA of convolutions)",
                recognised="`.lora_down` and `.lora_up` of convolutions, 2 or 4 dimensions",
                result="merged",
            ),
        ),
        pytest.param(
            "locon",
            {"use_tucker": True},
            marks=file_kind(
                "lora",
                "LoCon with Tucker's middle tensor (CP)",
                recognised="`.lora_mid.weight`",
                result="merged",
            ),
        ),
        pytest.param("locon", {"rs_lora": True, "alpha": 2}),
        pytest.param(
            "dylora",
            {},
            marks=file_kind(
                "lora", "DyLoRA", recognised="as LoRA; all ranks are stored", result="merged"
            ),
        ),
        pytest.param(
            "loha",
            {},
            marks=file_kind(
                "lora", "LoHa", recognised="`.hada_w1_a` to `.hada_w2_b`", result="merged"
            ),
        ),
        pytest.param(
            "loha",
            {"use_tucker": True},
            marks=file_kind(
                "lora",
                "LoHa with Tucker's middle tensors",
                recognised="`.hada_t1` and `.hada_t2`",
                result="merged",
            ),
        ),
        pytest.param(
            "lokr",
            {"lora_dim": 1},
            marks=file_kind(
                "lora",
                "LoKr, second factor decomposed",
                recognised="`.lokr_w1`, `.lokr_w2_a` and `.lokr_w2_b`",
                result="merged",
            ),
        ),
        pytest.param("lokr", {"lora_dim": 1, "alpha": 2.5, "factor": 2}),
        pytest.param(
            "lokr",
            {"lora_dim": 1, "decompose_both": True, "factor": 4},
            marks=file_kind(
                "lora",
                "LoKr, both factors decomposed",
                recognised="`.lokr_w1_a`, `.lokr_w1_b`",
                result="merged",
            ),
        ),
        pytest.param(
            "lokr",
            {"full_matrix": True},
            marks=file_kind(
                "lora",
                "LoKr, both factors whole",
                recognised="`.lokr_w1` and `.lokr_w2`; alpha is ignored",
                result="merged",
            ),
        ),
        pytest.param(
            "lokr",
            {"lora_dim": 1, "use_tucker": True},
            marks=file_kind(
                "lora",
                "LoKr with Tucker's middle tensor",
                recognised="`.lokr_t2`",
                result="merged",
            ),
        ),
        pytest.param(
            "glora",
            {},
            marks=file_kind(
                "lora", "GLoRA", recognised="`.a1.weight` to `.b2.weight`", result="merged"
            ),
        ),
        pytest.param(
            "ia3",
            {"train_on_input": False},
            marks=file_kind(
                "lora", "IA3 of LyCORIS", recognised="`.on_input` and `.weight`", result="merged"
            ),
        ),
        pytest.param("ia3", {"train_on_input": True}),
        pytest.param(
            "oft",
            {},
            marks=file_kind(
                "lora",
                "OFT of LyCORIS and kohya",
                recognised="`.oft_blocks` of three dimensions",
                result="merged",
            ),
        ),
        pytest.param("oft", {"constraint": 0.01, "rescaled": True}),
        pytest.param(
            "full",
            {},
            marks=file_kind(
                "lora",
                "full differences",
                recognised="`.diff` and `.diff_b`",
                result="merged",
            ),
        ),
    ],
)
def test_weights_are_those_of_lycoris(
    method: str, options: dict[str, Any], scale: float, tmp_path: Path
) -> None:
    check(tmp_path, method, scale, LAYERS, **{"lora_dim": 4, "alpha": 3} | options)


@SCALES
@pytest.mark.parametrize("options", [{}, {"constraint": 0.01, "rescaled": True}])
@file_kind(
    "lora",
    "BOFT of LyCORIS",
    recognised="`.oft_blocks` of four dimensions",
    result="merged",
)
def test_boft_is_that_of_lycoris(options: dict[str, Any], scale: float, tmp_path: Path) -> None:
    layers = {
        part: tuple(
            n for n in names if MODULES[part].get_submodule(n).weight.shape[0] in (16, 32, 64, 128)
        )
        for part, names in LAYERS.items()
    }
    check(tmp_path, "boft", scale, layers, lora_dim=4, **options)


@SCALES
@file_kind("lora", "norms", recognised="`.w_norm` and `.b_norm`", result="merged")
def test_norms_are_those_of_lycoris(scale: float, tmp_path: Path) -> None:
    check(tmp_path, "norm", scale, NORMS)


@pytest.mark.parametrize("on_output", [True, False])
@pytest.mark.parametrize("method", ["locon", "loha", "lokr"])
@SCALES
@file_kind(
    "lora",
    "DoRA of LyCORIS: LoRA, LoHa or LoKr with a magnitude",
    recognised="`.dora_scale`, for each output or each input channel",
    result="merged",
)
def test_dora_is_that_of_lycoris(
    method: str, on_output: bool, scale: float, tmp_path: Path
) -> None:
    options = {"weight_decompose": True, "wd_on_out": on_output, "lora_dim": 2, "alpha": 1.5}
    check(tmp_path, method, scale, LAYERS, **options)
