"""Folders and settings of PEFT and diffusers: merged to the weights that PEFT merges (row C15)."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from sdexport.checkpoints.lora import Lora
from sdexport.engines.errors import CheckpointError
from sdexport.runtime.adapters.lora_folder import lora_sources
from tests.helpers.file_kinds import file_kind
from tests.helpers.original_layout import SMALL, random_modules
from tests.tolerances import LYCORIS_ABS

peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape"),  # those of biases
]

SD1, _, SDXL, _ = SMALL
LAYERS = {"unet": ["attn2.to_k", "attn1.to_out.0", "conv1", "net.0.proj", "proj_in"]}
LAYERS |= {f"text_encoder{n}": ["q_proj", "out_proj", "fc1"] for n in ("", "_2")}
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"attn2.to_k": 2, "fc1": 2},
    "alpha_pattern": {"attn2.to_k": 7, "mlp.fc1": 8},
}
SLOW = pytest.mark.slow
LYCORIS = {"r": 3, "alpha": 5}


def adapted(family: Any, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """PEFT models of a family's components, with random factors."""
    generator = torch.Generator().manual_seed(0)
    models = {}
    for part, module in random_modules(family).items():
        if part == "vae":
            continue
        own = {k: _of_part(part, v) if k in PATTERNS else v for k, v in options.items()}
        config = getattr(peft, f"{kind}Config")(target_modules=LAYERS[part], **own)
        models[part] = peft.get_peft_model(copy.deepcopy(module), config)
        for name, weight in models[part].named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "magnitude" in name:
                weight.data *= 1 + 0.3 * noise
            elif any(word in name for word in ("lora_", "hada_", "lokr_")):
                weight.data = 0.2 * noise
    return models


def _of_part(part: str, pattern: dict[str, int]) -> dict[str, int]:
    """PEFT warns about patterns that fit no layer."""
    return {k: v for k, v in pattern.items() if ("attn2" in k) == (part == "unet")}


def merged_by_peft(model: Any, scale: float) -> dict[str, torch.Tensor]:
    """The weights and biases of the layers that a PEFT model changes."""
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer):
            layer.set_scale("default", scale)
            layer.merge()
            found |= {f"{name}.{k}": v for k, v in layer.get_base_layer().named_parameters()}
    return found


def check(family: Any, models: dict[str, Any], folder: Path, scale: float) -> None:
    """Compare the LoRA of a folder, merged, with what PEFT merges."""
    modules = {k: copy.deepcopy(v) for k, v in random_modules(family).items() if k != "vae"}
    for source in lora_sources(f"{folder}:{scale}"):
        lora = Lora.open(source.path, source.scale, modules, component=source.component)
        for part, module in modules.items():
            lora.merge_into(part, module)
    for part, model in models.items():
        state, before = modules[part].state_dict(), random_modules(family)[part].state_dict()
        expected = merged_by_peft(model, scale)
        for name, value in expected.items():
            assert torch.allclose(state[name], value, atol=LYCORIS_ABS, rtol=0), (part, name)
        changed = {name for name in state if not torch.equal(state[name], before[name])}
        assert changed and changed <= set(expected)


def save_as_diffusers(family: Any, models: dict[str, Any], folder: Path) -> None:
    states = {part: peft.get_peft_model_state_dict(model) for part, model in models.items()}
    states = {
        part: {k.removeprefix("base_model.model."): v for k, v in state.items()}
        for part, state in states.items()
    }
    arguments: dict[str, Any] = {f"{part}_lora_layers": state for part, state in states.items()}
    for part, model in models.items():
        arguments[f"{part}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    name = "StableDiffusionXLPipeline" if family is SDXL else "StableDiffusionPipeline"
    getattr(diffusers, name).save_lora_weights(folder, **arguments)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {},
            marks=file_kind(
                "lora",
                "folder of diffusers' save_lora_weights",
                recognised="`pytorch_lora_weights.safetensors`; alphas in its header",
                result="merged",
            ),
        ),
        pytest.param(
            {"use_rslora": True},
            marks=file_kind(
                "lora",
                "rank-stabilised LoRA",
                recognised="`use_rslora` in the header or in `adapter_config.json`",
                result="merged, with alpha divided by the root of the rank",
            ),
        ),
        pytest.param(
            PATTERNS,
            marks=file_kind(
                "lora",
                "LoRA with other ranks and alphas for some layers",
                recognised="`rank_pattern` and `alpha_pattern`",
                result="merged",
            ),
        ),
        pytest.param(
            {"use_dora": True},
            marks=file_kind(
                "lora",
                "DoRA of PEFT",
                recognised="`.lora_magnitude_vector`",
                result="merged",
            ),
        ),
        pytest.param(
            {"lora_bias": True},
            marks=file_kind(
                "lora",
                "LoRA with a bias",
                recognised="`.lora_B.bias`",
                result="merged",
            ),
        ),
    ],
)
def test_folder_of_diffusers(options: dict[str, Any], tmp_path: Path) -> None:
    family = SDXL if options == {"use_dora": True} else SD1
    options = {"r": 3, "lora_alpha": 5} | options
    models = adapted(family, "Lora", options) if "lora_bias" not in options else biased(family)
    save_as_diffusers(family, models, tmp_path)
    check(family, models, tmp_path, 0.7)


def biased(family: Any) -> dict[str, Any]:
    """Models whose LoRA has biases, at layers that have one."""
    before = LAYERS["unet"]
    LAYERS["unet"] = ["to_out.0", "conv1", "net.0.proj"]
    try:
        return adapted(family, "Lora", {"r": 3, "lora_alpha": 5, "lora_bias": True})
    finally:
        LAYERS["unet"] = before


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param(
            "Lora",
            {"r": 3, "lora_alpha": 5} | PATTERNS,
            marks=file_kind(
                "lora",
                "folder of PEFT's save_pretrained, or one folder for each component",
                recognised="`adapter_model.safetensors` and `adapter_config.json`; "
                "`unet/`, `text_encoder/`, `text_encoder_2/`",
                result="merged",
            ),
        ),
        pytest.param(
            "Lora", {"r": 4, "lora_alpha": 6, "use_rslora": True, "use_dora": True}, marks=SLOW
        ),
        pytest.param(
            "LoHa",
            LYCORIS,
            marks=file_kind("lora", "LoHa of PEFT", recognised="`peft_type` LOHA", result="merged"),
        ),
        pytest.param("LoHa", LYCORIS | {"use_effective_conv2d": True}, marks=SLOW),
        pytest.param(
            "LoKr",
            {"r": 1, "alpha": 3},
            marks=file_kind("lora", "LoKr of PEFT", recognised="`peft_type` LOKR", result="merged"),
        ),
        pytest.param(
            "LoKr",
            {"r": 1, "alpha": 3, "decompose_both": True, "decompose_factor": 4},
            marks=SLOW,
        ),
        pytest.param("LoKr", {"r": 1, "alpha": 3, "use_effective_conv2d": True}, marks=SLOW),
        ("LoKr", {"r": 16, "alpha": 3}),
    ],
)
def test_folders_of_peft(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    models = adapted(SD1, kind, options)
    for part, model in models.items():
        model.save_pretrained(tmp_path / part)
    check(SD1, models, tmp_path, 0.7)


def test_folder_of_one_component(tmp_path: Path) -> None:
    models = {"unet": adapted(SD1, "Lora", {"r": 3, "lora_alpha": 5})["unet"]}
    models["unet"].save_pretrained(tmp_path)
    check(SD1, models, tmp_path, 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models = {"unet": adapted(SD1, "Lora", {"r": 3, "lora_alpha": 5})["unet"]}
    models["unet"].save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def test_folder_with_one_file_of_any_name(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_model.safetensors").rename(folder / "style.safetensors")
    (source,) = lora_sources(str(folder))
    assert source.path.name == "style.safetensors"


@file_kind(
    "lora",
    "folder with several LoRA files",
    recognised="more than one file, and none is called `pytorch_lora_weights` alone",
    result="rejected",
    says="several LoRA files",
)
def test_folder_with_several_files(folder: Path, says: str) -> None:
    shutil.copyfile(
        folder / "adapter_model.safetensors", folder / "pytorch_lora_weights.safetensors"
    )
    with pytest.raises(CheckpointError, match=rf"lora: {says} \(pytorch_lora.*, adapter_model"):
        lora_sources(str(folder))
    for name in ("adapter_model", "pytorch_lora_weights"):
        (folder / f"{name}.safetensors").rename(folder / f"{name}-2.safetensors")
    with pytest.raises(CheckpointError, match=f"{says}.*adapter_model-2.*give one of them"):
        lora_sources(str(folder))


def test_other_files_of_a_folder_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The training scripts of diffusers write an embedding into the same folder."""
    lora_sources(str(folder))
    assert not caplog.records
    (folder / "my_emb.safetensors").write_bytes(b"")
    lora_sources(str(folder))
    assert "adapter_model.safetensors is used; not used: my_emb.safetensors" in caplog.text


@file_kind(
    "lora",
    "folder without a LoRA",
    recognised="neither a known name nor a single `.safetensors` file",
    result="rejected",
    says="no LoRA in this folder",
)
def test_folder_without_a_file(tmp_path: Path, says: str) -> None:
    with pytest.raises(CheckpointError, match=f"{says}; expected pytorch_lora.*it is empty"):
        lora_sources(str(tmp_path))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=f"{says}.*, got notes.txt"):
        lora_sources(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"init_lora_weights": "pissa"},
            "init_lora_weights 'pissa' changes the checkpoint's weights",
            marks=file_kind(
                "lora",
                "PiSSA, OLoRA, LoftQ and CorDA before conversion",
                recognised="`init_lora_weights` in the settings",
                result="rejected",
                says="init_lora_weights 'pissa' changes the checkpoint's weights",
            ),
        ),
        pytest.param(
            {"peft_type": "BOFT"},
            "PEFT's method 'BOFT' is not supported",
            marks=file_kind(
                "lora",
                "other methods of PEFT",
                recognised="`peft_type` in the settings",
                result="rejected",
                says="PEFT's method 'BOFT' is not supported",
            ),
        ),
        pytest.param(
            {"alpha_pattern": {".*attn.*": 3}},
            "the pattern '.*attn.*'; only names",
            marks=file_kind(
                "lora",
                "regular expressions as names of layers",
                recognised="`alpha_pattern` or `rank_pattern` in the settings",
                result="rejected",
                says="the pattern '.*attn.*'; only names",
            ),
        ),
    ],
)
def test_settings_that_are_not_supported(
    settings: dict[str, Any], message: str, folder: Path, says: str
) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    modules = {k: v for k, v in random_modules(SD1).items() if k != "vae"}
    with pytest.raises(CheckpointError) as error:
        Lora.open(folder / "adapter_model.safetensors", 1.0, modules)
    assert says in str(error.value) and str(folder) in str(error.value)
