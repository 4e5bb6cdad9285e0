"""Merged LoRA files equal what diffusers fuses, in every layout."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from sdexport.checkpoints.lora import Lora
from sdexport.demo_model import MODEL_DIR
from tests.helpers.file_kinds import file_kind
from tests.helpers.lora_files import (
    ATTENTION,
    WIDE,
    random_lora,
    save_first_diffusers,
    save_kohya,
    save_peft,
)
from tests.helpers.original_layout import SMALL, random_modules
from tests.tolerances import FUSED_ABS

pytest.importorskip("peft", reason="diffusers fuses LoRA files through peft")

SD1, _, SDXL, _ = SMALL


@pytest.fixture(autouse=True)
def _text_encoders_without_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other parity tests give CLIPTextModel the attribute that diffusers' clip_skip needs."""
    monkeypatch.delattr(transformers.CLIPTextModel, "text_model", raising=False)


def fused_by_diffusers(
    family: Any, modules: dict[str, Any], files: list[tuple[Path, float]]
) -> Any:
    modules = {name: copy.deepcopy(module) for name, module in modules.items()}
    tokenizer = transformers.CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    if family is SDXL:
        pipe = diffusers.StableDiffusionXLPipeline(
            **modules, tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=scheduler
        )
    else:
        pipe = diffusers.StableDiffusionPipeline(
            **modules,
            tokenizer=tokenizer,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    for path, scale in files:
        pipe.load_lora_weights(str(path.parent), weight_name=path.name)
        pipe.fuse_lora(lora_scale=scale)
        pipe.unload_lora_weights()
    return {name: getattr(pipe, name) for name in modules}


def check(family: Any, files: list[tuple[Path, float]], parts: set[str]) -> float:
    modules = random_modules(family)
    expected = fused_by_diffusers(family, modules, files)
    merged = {name: copy.deepcopy(module) for name, module in modules.items()}
    for path, scale in files:
        lora = Lora.open(path, scale, {k: v for k, v in merged.items() if k != "vae"})
        for part, module in merged.items():
            lora.merge_into(part, module)
    worst = 0.0
    for part, module in merged.items():
        state, original = expected[part].state_dict(), modules[part].state_dict()
        assert state.keys() == original.keys()
        changed = any(not torch.equal(state[k], v) for k, v in original.items())
        assert changed == (part in parts), part
        for name, value in module.state_dict().items():
            worst = max(worst, float((value - state[name]).abs().max()))
    print(f"{family.name}: {worst:.2e}")  # noqa: T201
    assert worst <= FUSED_ABS
    return worst


@file_kind(
    "lora",
    "kohya (sd-scripts), SD 1",
    recognised="`lora_unet_*` and `lora_te_*` with `.lora_down`, `.lora_up` and `.alpha`",
    result="merged",
)
@pytest.mark.parametrize("alpha", [None, 1.0, 6.0])
def test_kohya_of_sd1(alpha: float | None, tmp_path: Path) -> None:
    pairs = random_lora(random_modules(SD1), WIDE)
    path = save_kohya(tmp_path / "a.safetensors", pairs, alpha)
    check(SD1, [(path, 0.7)], {"unet", "text_encoder"})


@file_kind(
    "lora",
    "kohya (sd-scripts), SDXL",
    recognised="`lora_unet_input_blocks_*`, `lora_te1_*`, `lora_te2_*`",
    result="merged",
)
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_kohya_of_sdxl_with_original_names(alpha: float | None, tmp_path: Path) -> None:
    modules = random_modules(SDXL)
    pairs = random_lora(modules, WIDE)
    path = save_kohya(tmp_path / "a.safetensors", pairs, alpha, modules["unet"])
    check(SDXL, [(path, -0.3)], {"unet", "text_encoder", "text_encoder_2"})


@file_kind(
    "lora",
    "diffusers and PEFT",
    recognised="`unet.*.lora_A.weight` and `.lora_B.weight`",
    result="merged",
)
@pytest.mark.parametrize("family", [SD1, SDXL], ids=lambda family: family.name)
def test_peft_names(family: Any, tmp_path: Path) -> None:
    pairs = random_lora(random_modules(family), WIDE)
    path = save_peft(tmp_path / "a.safetensors", pairs)
    check(family, [(path, 1.0)], set(pairs))


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_settings_in_the_header(rslora: bool, tmp_path: Path) -> None:
    pairs = random_lora(random_modules(SD1), ATTENTION)
    settings = {"r": 3, "lora_alpha": 12, "use_rslora": rslora}
    settings |= {"rank_pattern": {}, "alpha_pattern": {}, "target_modules": list(ATTENTION)}
    named = {f"{part}.{k}": v for part in pairs for k, v in settings.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(named)}
    path = save_peft(tmp_path / "a.safetensors", pairs, metadata)
    check(SD1, [(path, 0.5)], {"unet", "text_encoder"})


@file_kind(
    "lora",
    "diffusers before PEFT",
    recognised="`.processor.to_q_lora.down`, `.lora_linear_layer.up`",
    result="merged",
)
def test_first_names_of_diffusers(tmp_path: Path) -> None:
    pairs = random_lora(random_modules(SD1), ATTENTION)
    pairs["unet"] = {k: v for k, v in pairs["unet"].items() if ".attn" in k}
    path = save_first_diffusers(tmp_path / "a.safetensors", pairs)
    check(SD1, [(path, 0.9)], {"unet", "text_encoder"})


def test_several_files_in_turn(tmp_path: Path) -> None:
    modules = random_modules(SD1)
    first = save_kohya(tmp_path / "a.safetensors", random_lora(modules, WIDE, rank=2), 4.0)
    second = save_peft(tmp_path / "b.safetensors", random_lora(modules, ATTENTION, seed=1))
    check(SD1, [(first, 0.8), (second, 0.25)], {"unet", "text_encoder"})
