"""Words that are bundled with a LoRA, in prompts of a pipeline call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdexport import InvalidArgumentError, Pipeline, load_pipeline
from sdexport.checkpoints.sources import Options
from sdexport.exporter import export
from tests.helpers.lora_files import ATTENTION, random_lora, save_peft
from tests.tolerances import IMAGE_ABS

CALL: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "height": 64, "width": 64}
WIDTH = 32


@pytest.fixture(scope="module")
def pipe(lora_package: Path) -> Any:
    with load_pipeline(lora_package) as pipeline:
        yield pipeline


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tensors(lora_folder: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    """A LoRA of the UNet's attention."""
    from sdexport.checkpoints.diffusers_folder import Checkpoint

    unet = Checkpoint.open(lora_folder / "checkpoint").load("unet")
    path = save_peft(tmp_path / "plain.safetensors", random_lora({"unet": unet}, ATTENTION))
    return load_file(path)


def pixels(pipe: Pipeline, prompt: str, **arguments: Any) -> np.ndarray:
    return np.asarray(pipe(prompt, **CALL, **arguments).images[0]).astype(int)


@pytest.mark.parametrize("key", ["clip_l", "string_to_param.*"])
def test_image_is_that_of_the_vectors(
    key: str,
    pipe: Pipeline,
    tensors: dict[str, torch.Tensor],
    vectors: torch.Tensor,
    tmp_path: Path,
) -> None:
    """As if they replaced the embeddings of other words; whatever the scale of the LoRA."""
    path = tmp_path / "a.safetensors"
    save_file({**tensors, f"bundle_emb.my.word.{key}": vectors}, path)
    plain, words = tmp_path / "plain.safetensors", {"red blue": vectors.numpy()}
    for scale in (0.8, 0):
        found = pixels(pipe, "a my.word circle", loras=[(path, scale)])
        expected = pixels(pipe, "a red blue circle", token_embeds=words, loras=[(plain, scale)])
        assert np.array_equal(found, expected)
    without = pixels(pipe, "a my.word circle", loras=[(plain, 0.8)])
    other = pixels(pipe, "a circle", loras=[(path, 0.8)])
    assert not np.array_equal(found, without)
    assert np.array_equal(other, pixels(pipe, "a circle", loras=[(plain, 0.8)]))


def test_prompt_styles_and_other_words(
    pipe: Pipeline, tensors: dict[str, torch.Tensor], vectors: torch.Tensor, tmp_path: Path
) -> None:
    path, words = tmp_path / "a.safetensors", {"red": vectors[0].numpy()}
    save_file({**tensors, "bundle_emb.zzz.clip_l": vectors[:1]}, path)
    for style, prompt in {
        "automatic1111": "a (WORD:1.3) circle AND a star",
        "comfyui": "a (WORD:1.3) circle",
        "compel": "a WORD+ circle",
    }.items():
        lora = {"loras": [(path, 0)], "prompt_style": style}
        found = pixels(pipe, prompt.replace("WORD", "zzz"), **lora)
        if style == "compel":
            with pytest.raises(InvalidArgumentError, match="'zzz', which is bundled with a LoRA"):
                pixels(pipe, "a zzz- circle", **lora)
            continue
        expected = pixels(
            pipe, prompt.replace("WORD", "red"), prompt_style=style, token_embeds=words
        )
        assert np.array_equal(found, expected), style
    replaced = pixels(pipe, "a red circle", loras=[(path, 0)], token_embeds={"red": "zzz"})
    assert np.array_equal(replaced, pixels(pipe, "a zzz circle", loras=[(path, 0)]))


def test_words_that_cannot_be_used(
    pipe: Pipeline,
    tensors: dict[str, torch.Tensor],
    vectors: torch.Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each is named, with the reason; the LoRA itself is used."""
    path = tmp_path / "a.safetensors"
    bundled = {
        "of-sdxl.clip_l": vectors,
        "of-sdxl.clip_g": torch.ones(2, 48),
        "g.clip_g": torch.ones(1, 48),
        "w.clip_l": torch.ones(1, 7),
        "o.emb_params": torch.ones(1, 7),
        "nan.clip_l": torch.full((1, WIDTH), torch.nan),
        "int.clip_l": torch.ones(1, WIDTH, dtype=torch.int32),
        "cube.clip_l": torch.ones(1, 1, WIDTH),
        "none.clip_l": torch.ones(0, WIDTH),
        "much.clip_l": torch.ones(76, WIDTH),
        "t.t5xxl": torch.ones(1, WIDTH),
        "circle</w>.clip_l": vectors.clone(),
    }
    save_file({**tensors, **{f"bundle_emb.{k}": v for k, v in bundled.items()}}, path)
    found = pixels(pipe, "a circle", loras=[path])
    assert np.array_equal(found, pixels(pipe, "a circle", loras=[tmp_path / "plain.safetensors"]))
    for message in (
        "'of-sdxl' has vectors for text encoders that the package does not have: clip_g",
        "'g' is not used: it has no vectors for the text_encoder",
        f"'w' is not used: expected vectors of {WIDTH}, got 7",
        f"'o' is not used: expected vectors of {WIDTH} that say for which, got vectors of 7",
        "'nan' is not used: a vector holds NaN or infinity",
        "'int' is not used: clip_l: expected floating-point vectors, got I32 of the shape",
        "'cube' is not used: clip_l: expected floating-point vectors, got F32 of the shape",
        "'none' is not used: expected 1 to 75 vectors, got 0",
        "'much' is not used: expected 1 to 75 vectors, got 76",
        "'t' is not used: it has no vectors for the text_encoder",
        "'circle</w>' is not used: there is a token 'circle</w>' already",
    ):
        assert message in caplog.text
    other = tmp_path / "b.safetensors"
    save_file({**tensors, "bundle_emb.of-sdxl.clip_l": vectors[:1]}, other)
    caplog.clear()
    pixels(pipe, "a circle", loras=[path, path])
    assert "another LoRA has that word" not in caplog.text  # the same file twice
    pixels(pipe, "a circle", loras=[path, other])
    assert "b: its bundled embedding of 'of-sdxl' is not used: another LoRA has" in caplog.text


@pytest.mark.slow
def test_image_is_that_of_the_export(
    lora_folder: Path, pipe: Pipeline, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path, row = tmp_path / "a.safetensors", torch.randn(3, WIDTH)
    save_file({**tensors, "bundle_emb.my-word.clip_l": row}, path)
    options = Options(lora=(f"{path}:0.7",))
    export(lora_folder / "checkpoint", tmp_path / "merged", options=options)
    with load_pipeline(tmp_path / "merged") as merged:
        expected = pixels(merged, "a my-word circle")
    found = pixels(pipe, "a my-word circle", loras=[(path, 0.7)])
    assert np.abs(found - expected).max() <= IMAGE_ABS
