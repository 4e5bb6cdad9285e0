"""A single file with LoRA and embedding files, exported and compared with diffusers."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import transformers
from PIL import Image
from safetensors.torch import save_file

from sdexport import load_pipeline
from sdexport.checkpoints import sources
from sdexport.checkpoints.published_configs import SingleFileFamily
from sdexport.checkpoints.single_file import SingleFile
from sdexport.checkpoints.sources import Options
from sdexport.demo_model import MODEL_DIR
from sdexport.exporter import export
from tests.helpers.diffusers_images import assert_same_images, generate_with_diffusers
from tests.helpers.embedding_vectors import vectors
from tests.helpers.lora_files import ATTENTION, WIDE, random_lora, save_kohya, save_peft
from tests.helpers.original_layout import SMALL, original_layout, random_modules

SD1, SD2, SDXL, REFINER = SMALL
PIPELINES = {
    SD1.name: diffusers.StableDiffusionPipeline,
    SD2.name: diffusers.StableDiffusionPipeline,
    SDXL.name: diffusers.StableDiffusionXLPipeline,
    REFINER.name: diffusers.StableDiffusionXLImg2ImgPipeline,
}
WORD = "<style>"
KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f is SDXL else [pytest.mark.slow]) for f in SMALL],
    ids=lambda family: family.name,
)
def test_file_with_lora_and_embeddings_equals_diffusers(
    family: SingleFileFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = random_modules(family)
    file = tmp_path / "model.safetensors"
    save_file(original_layout(family, modules), file)
    unet = modules["unet"] if family is SDXL else None  # of the refiner diffusers loses layers
    kohya = save_kohya(tmp_path / "a.safetensors", random_lora(modules, WIDE), 2.0, unet)
    peft = save_peft(tmp_path / "b.safetensors", random_lora(modules, ATTENTION, seed=1))
    word = tmp_path / "style.safetensors"
    save_file(words(modules), word)

    small = partial(SingleFile.open, families=SMALL)
    monkeypatch.setattr(sources.SingleFile, "open", small)
    plain = tmp_path / "plain"
    plain.mkdir()
    small(file).write_configs(plain, MODEL_DIR / "tokenizer")
    theirs = changed_by_diffusers(family, modules, plain, [(kohya, 0.7), (peft, 0.3)])
    arguments: dict[str, Any] = {
        "prompt": f"a {WORD} circle",
        "negative_prompt": "a square",
        "num_inference_steps": 3,
        "guidance_scale": 4.0,
    }
    if family is REFINER:
        image = Image.linear_gradient("L").convert("RGB").resize((64, 64))
        arguments |= {"image": image, "strength": 0.7}
    else:
        arguments |= {"height": 64, "width": 72}
    expected = generate_with_diffusers(theirs, 5, **arguments)
    assert expected.std() > 5, "the image is nearly flat and would prove nothing"
    options = Options(
        tokenizer=MODEL_DIR / "tokenizer",
        lora=(f"{kohya}:0.7", f"{peft}:0.3"),
        embedding=(f"{word}:{WORD}",),
    )
    package = tmp_path / "package"
    export(file, package, options=options)
    with load_pipeline(package) as ours:
        assert_same_images(ours(seed=5, **arguments), expected)


def words(modules: dict[str, Any]) -> dict[str, Any]:
    """Two vectors for each text encoder, in the layout that such files have."""
    widths = {p: m.config.hidden_size for p, m in modules.items() if p.startswith("text_encoder")}
    if list(widths) == ["text_encoder"]:
        return {WORD: vectors(2, width=widths["text_encoder"])}
    return {KEYS[part]: vectors(2, width=width) for part, width in widths.items()}


def changed_by_diffusers(
    family: SingleFileFamily, modules: dict[str, Any], folder: Path, loras: list[tuple[Path, float]]
) -> Any:
    """diffusers' own pipeline with its own merging and its own way of adding words."""
    parts = {name: copy.deepcopy(module) for name, module in modules.items()}
    for part in [p for p in modules if p.startswith("text_encoder")]:
        tokenizer = part.replace("text_encoder", "tokenizer")
        parts[tokenizer] = transformers.CLIPTokenizer.from_pretrained(folder / tokenizer)
    index = diffusers.DiffusionPipeline.load_config(folder)
    name, settings = index["scheduler"][1], folder / "scheduler"
    parts["scheduler"] = getattr(diffusers, name).from_pretrained(settings)
    class_ = PIPELINES[family.name]
    if "text_encoder_2" not in modules:
        parts |= {"safety_checker": None, "feature_extractor": None}
        parts["requires_safety_checker"] = False
    elif family is REFINER:
        parts |= {"text_encoder": None, "tokenizer": None, "requires_aesthetics_score": True}
        parts["force_zeros_for_empty_prompt"] = bool(index["force_zeros_for_empty_prompt"])
    pipe: Any = class_(**parts)
    pipe.set_progress_bar_config(disable=True)
    for path, scale in loras:
        pipe.load_lora_weights(str(path.parent), weight_name=path.name)
        pipe.fuse_lora(lora_scale=scale)
        pipe.unload_lora_weights()
    tensors = words(modules)
    for part in [p for p in modules if p.startswith("text_encoder")]:
        key = WORD if WORD in tensors else KEYS[part]
        how = {
            "text_encoder": getattr(pipe, part),
            "tokenizer": getattr(pipe, part.replace("text_encoder", "tokenizer")),
        }
        pipe.load_textual_inversion(tensors[key], token=WORD, **how)
    return pipe
