"""LoRAs that the prompts of a pipeline call name: lora_dir."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdexport import InvalidArgumentError, load_pipeline, save_image
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.runtime.adapters.lora_tags import loras_of_prompts, without_lora_tags
from tests.helpers.lora_files import ATTENTION, random_lora, save_peft

CALL: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "height": 64, "width": 64}


@pytest.fixture(scope="module")
def folder(lora_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("loras")
    (found / "below").mkdir()
    checkpoint = Checkpoint.open(lora_folder / "checkpoint")
    modules = {part: checkpoint.load(part) for part in ("unet", "text_encoder")}
    for seed, name in enumerate(("a", "below/b c")):
        pairs = random_lora(modules, ATTENTION, seed=seed)
        save_peft(found / f"{name}.safetensors", pairs)
    return found


def test_scales_of_each_prompt(folder: Path) -> None:
    a, b = folder / "a.safetensors", folder / "below" / "b c.safetensors"
    assert loras_of_prompts(["x", "y"], folder / "none") == []  # which no prompt needs
    assert loras_of_prompts(["x<lora:a:0.5>", "<lora:a:0.5> y"], folder) == [(a, 0.5)]
    texts: list[Any] = ["<lora:a:0.5> x <lora:a>", "y", ("<lora:b c:-1>", "<lora:b c:-1> z")]
    assert loras_of_prompts(texts, folder) == [(a, [1.5, 0.0, 0.0]), (b, [0.0, 0.0, -1.0])]
    twice: list[Any] = ["<lora:a:0.5> <lora:a:0.5>", ("<lora:a:0.5><lora:a:0.5>", "<lora:a:1>")]
    assert loras_of_prompts(twice, folder) == [(a, 1.0)]
    assert loras_of_prompts([("<lora:a:0.5>", "<lora:a:0.4>")], folder) == [(a, 0.9)]
    assert list(map(without_lora_tags, texts)) == [" x ", "y", ("", " z")]


@pytest.mark.parametrize("style", ["plain", "automatic1111", "comfyui", "compel"])
def test_image_is_that_of_the_argument(style: str, lora_package: Path, folder: Path) -> None:
    a, b = folder / "a.safetensors", folder / "below" / "b c.safetensors"
    prompts = ["a red<lora:a:0.5> circle", "a star", "a star <lora:b c:-0.5><lora:a:1>"]
    plain = ["a red circle", "a star", "a star "]
    call = {**CALL, "seed": [1, 2, 3], "prompt_style": style}
    with load_pipeline(lora_package, lora_dir=folder) as pipe:
        found = pipe(prompts, **call, loras=[(a, 0.25)])
        loras: Any = [(a, 0.25), (a, [0.5, 0.0, 1.0]), (b, [0.0, 0.0, -0.5])]
        expected = pipe(plain, **call, loras=loras)
        assert [p.prompt for p in found.parameters] == plain
        assert found.parameters[0].loras == expected.parameters[0].loras
        for one, other in zip(found.images, expected.images, strict=True):
            assert one.tobytes() == other.tobytes()
        assert pipe("x", **CALL).parameters[0].loras is None


def test_image_again(lora_package: Path, folder: Path, tmp_path: Path) -> None:
    """The LoRA is found in the folder."""
    with load_pipeline(lora_package, lora_dir=folder) as pipe:
        result = pipe("x <lora:b c:0.5>", **CALL)
    save_image(result.images[0], tmp_path / "image.png")
    with load_pipeline(lora_package, lora_dir=folder) as pipe:
        assert pipe.like(tmp_path / "image.png").images[0].tobytes() == result.images[0].tobytes()
    with load_pipeline(lora_package) as pipe, pytest.raises(InvalidArgumentError, match="'b c'"):
        pipe.like(tmp_path / "image.png")


def test_folders_and_names_that_are_wrong(lora_package: Path, folder: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"lora_dir: .* is no folder"):
        load_pipeline(lora_package, lora_dir=folder / "none")
    with pytest.raises(InvalidArgumentError, match="lora_dir must be a folder, got 1"):
        load_pipeline(lora_package, lora_dir=1)
    with load_pipeline(lora_package, lora_dir=folder) as pipe:
        with pytest.raises(InvalidArgumentError, match=r"'<lora:c:1>': no such LoRA in .* a, b c"):
            pipe("<lora:c:1>", **CALL)
        with pytest.raises(InvalidArgumentError, match="must be -100 to 100, got nan"):
            pipe("<lora:a:nan>", **CALL)
        with pytest.raises(InvalidArgumentError, match="expected a list"):
            pipe("<lora:a:1>", **CALL, loras="a.safetensors")


def test_text_of_the_second_encoder(folder: Path) -> None:
    from sdexport.runtime.adapters.call_loras import loras_in_prompts

    arguments: dict[str, Any] = {"prompt_2": ["x", "y <lora:a:1>"]}
    texts: Any = [("a", "x"), ("b", "y <lora:a:1>")]
    prompts, rest, named = loras_in_prompts(texts, folder, arguments)
    assert prompts == ["a", "b"] and rest == [("a", "x"), ("b", "y ")]
    assert named == [(folder / "a.safetensors", [0.0, 1.0])]
    assert arguments == {"prompt_2": ["x", "y "]}
