"""An image is generated again from the settings that it carries."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport import InvalidArgumentError, Parameters, Pipeline, read_parameters, save_image
from sdexport.runtime.reproduction import arguments_like

BASE: dict[str, Any] = {"num_inference_steps": 2, "width": 64, "height": 64}


def pixels(image: Image.Image) -> bytes:
    return image.tobytes()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    levels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(levels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_like_gives_the_same_file(pipe: Pipeline, tmp_path: Path) -> None:
    """N4."""
    result = pipe("a (red:1.2) circle", "blue", prompt_weights=True, clip_skip=1, **BASE)
    save_image(result.images[0], tmp_path / "a.png")
    again = pipe.like(tmp_path / "a.png")
    save_image(again.images[0], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    parameters = read_parameters(tmp_path / "a.png")
    third = pipe(**parameters.arguments())
    assert pixels(third.images[0]) == pixels(result.images[0])


def test_like_takes_changes(pipe: Pipeline) -> None:
    image = pipe("a red circle", seed=3, scheduler="ddim", eta=0.5, **BASE).images[0]
    other = pipe.like(image, seed=4, prompt="a blue circle", scheduler="euler")
    expected = pipe("a blue circle", seed=4, scheduler="euler", **BASE)
    assert pixels(other.images[0]) == pixels(expected.images[0])
    assert other.parameters[0].eta == 0


@pytest.mark.parametrize("seed", [7, [1, 2, 3], None])
def test_image_of_a_batch(pipe: Pipeline, seed: Any) -> None:
    prompts = ["a red circle", "a much longer prompt " * 20, "a blue star"]
    batch = pipe(prompts, seed=seed, prompt_weights=True, **BASE)
    for number in (0, 2):
        again = pipe.like(batch.images[number])
        assert len(again.images) == len(again.latents) == 1
        assert pixels(again.images[0]) == pixels(batch.images[number])
        assert again.parameters[0] == batch.parameters[number]
    changed = pipe.like(batch.images[0], prompt="a green star").parameters[0]
    assert (changed.prompt, changed.prompts) == ("a green star", ("a green star", *prompts[1:]))


def test_images_of_one_prompt(pipe: Pipeline) -> None:
    batch = pipe("a red circle", seed=1, num_images_per_prompt=3, **BASE)
    assert batch.parameters[2].prompts is None
    again = pipe.like(batch.images[2])
    assert pixels(again.images[0]) == pixels(batch.images[2])


def test_input_images_are_found_by_name_and_pixels(
    pipe: Pipeline, photo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = pipe("a star", image=photo, mask_image=photo, strength=0.5, seed=1, **BASE)
    (recorded,) = result.parameters[0].image or ()
    assert recorded.name == "photo.png", "without the folder"
    save_image(result.images[0], tmp_path / "a.png")
    again = pipe.like(tmp_path / "a.png")
    assert pixels(again.images[0]) == pixels(result.images[0])
    assert not caplog.records
    with Image.open(photo) as opened:
        same = np.asarray(opened)
    assert pipe.like(tmp_path / "a.png", image=same, mask_image=photo).parameters
    assert not caplog.records, "the same pixels"
    other = Image.new("RGB", (64, 64), "red")
    assert pipe.like(tmp_path / "a.png", image=other).parameters
    (record,) = caplog.records
    assert record.getMessage().endswith("the image may differ: another image")
    photo.rename(tmp_path / "moved.png")
    with pytest.raises(InvalidArgumentError, match=r"as image: photo\.png, which is not there"):
        pipe.like(tmp_path / "a.png")
    other.save(photo)
    with pytest.raises(InvalidArgumentError, match="which is not there"):
        pipe.like(tmp_path / "a.png")


def test_input_image_in_memory_has_to_be_given_again(pipe: Pipeline, photo: Path) -> None:
    with Image.open(photo) as opened:
        source = opened.copy()
    image = pipe("a star", image=[source], seed=1, **BASE).images[0]
    with pytest.raises(InvalidArgumentError, match="no file name; give it again"):
        pipe.like(image)
    assert pixels(pipe.like(image, image=source).images[0]) == pixels(image)


def test_recorded_name_leads_into_no_other_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    parameters = Parameters(prompt="x")
    (folder := tmp_path / "in").mkdir()
    source = pipe_input(secret, "../secret.png")
    with pytest.raises(InvalidArgumentError, match=r"secret\.png, which is not there"):
        arguments_like(replace(parameters, image=(source,)), {}, folder)


def pipe_input(path: Path, name: str) -> Any:
    from sdexport.runtime.images.input_digest import identify

    (found,) = identify(path) or ()
    return replace(found, name=name)


def test_arrays_and_functions_have_to_be_given_again(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    image = pipe("a star", latents=latents, **BASE).images[0]
    message = r"alone: it depends on latents, float32 \(1, 4, 8, 8\) sha256.*; give it again"
    with pytest.raises(InvalidArgumentError, match=message):
        pipe.like(image)
    assert pixels(pipe.like(image, latents=latents).images[0]) == pixels(image)
    assert not caplog.records
    assert pixels(pipe.like(image, latents=-latents).images[0]) != pixels(image)
    assert "another latents" in caplog.text
    assert pipe.like(image, seed=3).parameters[0].external == {}, "a seed replaces latents"

    embeds = pipe.encode(["a star"])
    image = pipe(prompt_embeds=embeds, guidance_scale=1, seed=0, **BASE).images[0]
    with pytest.raises(InvalidArgumentError, match="depends on prompt_embeds"):
        pipe.like(image)
    assert pixels(pipe.like(image, prompt_embeds=embeds).images[0]) == pixels(image)
    assert pipe.like(image, prompt="a star").parameters[0].prompt == "a star"


def test_words_replaced_by_words_are_recorded(pipe: Pipeline) -> None:
    image = pipe("a red star", token_embeds={"red": {"red": 0.5, "blue": 0.5}}, **BASE).images[0]
    assert pixels(pipe.like(image).images[0]) == pixels(image)
    vector = np.zeros(pipe.encode(["x"]).shape[-1], np.float32)
    image = pipe("a red star", token_embeds={"red": vector}, **BASE).images[0]
    with pytest.raises(InvalidArgumentError, match="depends on token_embeds, dict sha256"):
        pipe.like(image)


def test_differences_are_one_warning(pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    parameters = pipe("a star", seed=0, **BASE).parameters[0]
    other = replace(
        parameters,
        model="other",
        model_hash="ab" * 32,
        backend="openvino",
        precision="bf16",
        vae_tile=64,
        version="0.0.1",
    )
    with caplog.at_level(logging.WARNING):
        pipe.like(other)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("image: the image may differ: model other (ababababab) then, package")
    for part in ("backend openvino then, onnxruntime now", "precision bf16 then", "version 0.0.1"):
        assert part in message
    assert "vae tile 64 then, unknown now" in message


def test_settings_of_another_program(pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    image = Image.new("RGB", (8, 8))
    image.info["parameters"] = (
        "a (red:1.1) star\nSteps: 2, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64, "
        "Model hash: 0123456789, Model: other, Eta: 0.6, Denoising strength: 0.5, "
        "Hires upscale: 2, Version: v1.10.0"
    )
    found = pipe.like(image)
    expected = pipe(
        "a (red:1.1) star",
        scheduler="euler_a",
        guidance_scale=7.0,
        seed=5,
        noise_device="cuda",
        prompt_weights=True,
        **BASE,
    )
    assert pixels(found.images[0]) == pixels(expected.images[0])
    assert "model other (0123456789) then" in caplog.text
    assert "; not used: Hires upscale, Denoising strength, Eta" in caplog.text
    from_image = replace(read_parameters(image), strength=0.5)
    with pytest.raises(InvalidArgumentError, match="made from an input image, which its settings"):
        pipe.like(from_image)


def test_space_before_a_colon_makes_no_difference(pipe: Pipeline) -> None:
    """So the text may hold "Negative prompt :" where the prompt has none; see infotext."""
    for text in ("Negative prompt: x", "a\nSteps: 3", "(Negative prompt:1.2)"):
        assert pipe.tokenizer.encode(text) == pipe.tokenizer.encode(text.replace(":", " :"))
    texts = ("(Negative prompt:1.2) x", "(Negative prompt :1.2) x")
    weighted = [pipe.encode([text], prompt_weights=True) for text in texts]
    np.testing.assert_array_equal(*weighted)
