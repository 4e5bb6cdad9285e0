"""Image files with settings: PNG, JPEG and WebP, as other programs read them."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import sd_parsers
from PIL import Image
from sd_prompt_reader.image_data_reader import ImageDataReader

from sdexport import InvalidArgumentError, read_parameters, save_image
from sdexport.runtime.images.embedded_text import embedded_texts
from sdexport.runtime.images.metadata import to_image
from sdexport.runtime.images.parameters import Parameters
from sdexport.runtime.images.recorded_values import InputImage
from sdexport.runtime.images.xmp import EDITED, GENERATED

FORMATS = ("png", "jpg", "webp")
SETTINGS = Parameters(
    prompt='a röd circle 🔴, <b>&amp;"quotes"</b>\nsecond line',
    negative_prompt="blurry, 'low'",
    num_inference_steps=20,
    scheduler="euler",
    guidance_scale=7.5,
    seed=3,
    width=64,
    height=48,
    model="model",
    clip_skip=1,
)
DIGEST = "ab" * 32


def image(**changes: Any) -> Image.Image:
    levels = np.arange(48 * 64 * 3).reshape(48, 64, 3) % 251
    return to_image(levels.astype(np.uint8), replace(SETTINGS, **changes))


def source_type(path: Path) -> str | None:
    """IPTC's term in a file, by an XML parser."""
    with Image.open(path) as opened:
        packet = opened.info.get("xmp")
    if packet is None:
        return None
    for element in ElementTree.fromstring(packet).iter():
        for key, value in element.items():
            if key == "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType":
                return value
    return None


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("how", ["save_image", "file object", "Pillow", "pickled"])
def test_settings_are_in_the_file(tmp_path: Path, suffix: str, how: str) -> None:
    """N6. The settings are there as text and as JSON, and the file says that a model made it."""
    path = tmp_path / f"a.{suffix}"
    if how == "save_image":
        save_image(image(), path)
    elif how == "Pillow":
        image().save(path)
    elif how == "pickled":
        pickle.loads(pickle.dumps(image())).save(str(path))
    else:
        content = io.BytesIO()
        save_image(image(), content, format=suffix)
        path.write_bytes(content.getvalue())
    with Image.open(path) as opened:
        assert opened.format == {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[suffix]
        text, settings = embedded_texts(opened)
    assert text == str(SETTINGS)
    assert settings is not None
    found = json.loads(settings)
    saved_as = found.pop("file", None)
    assert found == json.loads(SETTINGS.to_json())
    assert (saved_as is None) == (how in ("Pillow", "pickled"))
    assert source_type(path) == GENERATED


@pytest.mark.parametrize("suffix", FORMATS)
def test_public_readers_read_the_settings(tmp_path: Path, suffix: str) -> None:
    """N3, N6. sd-parsers and sd-prompt-reader find prompts and settings."""
    path = tmp_path / f"a.{suffix}"
    save_image(image(), path)
    found = sd_parsers.ParserManager().parse(path)
    assert found is not None
    (sampler,) = found.samplers
    assert sampler.parameters["seed"] == "3"
    assert sampler.parameters["steps"] == "20"
    assert sampler.parameters["cfg_scale"] == "7.5"
    assert sampler.prompts[0].value == SETTINGS.prompt
    assert sampler.negative_prompts[0].value == SETTINGS.negative_prompt
    assert sampler.model is not None
    assert sampler.model.name == "model"
    assert found.metadata["Size"] == "64x48"
    assert found.metadata["Clip skip"] == "2"
    assert found.metadata["RNG"] == "CPU"
    reader = ImageDataReader(str(path))
    assert (reader.positive, reader.negative) == (SETTINGS.prompt, SETTINGS.negative_prompt)
    assert reader.parameter == {
        "model": "model",
        "sampler": sampler.name,
        "seed": "3",
        "cfg": "7.5",
        "steps": "20",
        "size": "64x48",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "a, b: c, Seed: 9, Steps: 8, Sampler: x"},
        {"model": 'a "quoted", \\ model\nSteps: 9'},
        {"backend": {"unet": "openvino,precision=bf16", "vae_decoder": "onnxruntime"}},
        {"token_embeds": {"a": {"b, Seed: 9": 0.5}}},
        {"external": {"latents": "float32 (1, 4, 8, 8) sha256:00, Seed: 9"}},
    ],
)
def test_commas_and_colons_corrupt_nothing(tmp_path: Path, changes: Any) -> None:
    """N3. No value is read as another setting."""
    save_image(image(**changes), tmp_path / "a.png")
    found = sd_parsers.ParserManager().parse(tmp_path / "a.png")
    assert found is not None
    sampler = found.samplers[0]
    wanted = {"seed": "3", "steps": "20", "cfg_scale": "7.5"}
    assert {key: sampler.parameters[key] for key in wanted} == wanted
    assert sampler.prompts[0].value == SETTINGS.prompt
    reader = ImageDataReader(str(tmp_path / "a.png"))
    assert (reader.positive, reader.negative) == (SETTINGS.prompt, SETTINGS.negative_prompt)
    assert [reader.parameter[key] for key in ("seed", "steps", "cfg")] == ["3", "20", "7.5"]


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a\nSteps: 3, Sampler: x, Seed: 9", "a\nSteps : 3, Sampler: x, Seed: 9"),
        ("a\nNegative prompt: b", "a\nNegative prompt : b"),
        ("(Negative prompt:1.2) b", "(Negative prompt :1.2) b"),
    ],
)
@pytest.mark.parametrize("negative", [None, "blurry"])
def test_prompt_with_the_words_of_the_text(
    tmp_path: Path, prompt: str, read: str, negative: str | None
) -> None:
    """N3. Readers find prompts whole; CLIP sees no space before a colon."""
    save_image(image(prompt=prompt, negative_prompt=negative), tmp_path / "a.png")
    found = sd_parsers.ParserManager().parse(tmp_path / "a.png")
    assert found is not None
    assert [each.value for each in found.samplers[0].prompts] == [read]
    negatives = [each.value for each in found.samplers[0].negative_prompts]
    assert negatives == ([negative] if negative else [])
    reader = ImageDataReader(str(tmp_path / "a.png"))
    assert (reader.parameter["seed"], reader.parameter["steps"]) == ("3", "20")
    if negative:
        assert (reader.positive, reader.negative) == (read, negative)
    assert read_parameters(tmp_path / "a.png").prompt == prompt


@pytest.mark.parametrize("suffix", FORMATS)
def test_mark_says_edited_and_can_be_left_out(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    save_image(image(image=(InputImage(DIGEST, "photo.jpg"),)), path)
    assert source_type(path) == EDITED
    save_image(image(), path, mark=False)
    assert source_type(path) is None
    assert b"DigitalSourceType=" not in path.read_bytes()
    with Image.open(path) as opened:
        assert embedded_texts(opened)[0] == str(SETTINGS)
    save_image(Image.new("RGB", (8, 8)), path)
    assert source_type(path) == GENERATED, "without settings"


def test_settings_survive_another_format(tmp_path: Path) -> None:
    save_image(image(), tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as opened:
        save_image(opened, tmp_path / "b.png")
    save_image(image().resize((32, 32)), tmp_path / "c.webp")
    for name in ("b.png", "c.webp"):
        with Image.open(tmp_path / name) as opened:
            assert embedded_texts(opened)[0] == str(SETTINGS)


def test_text_without_settings_is_kept(tmp_path: Path) -> None:
    plain = Image.new("RGB", (8, 8))
    plain.info |= {"parameters": "a red square", "sdexport": "no JSON", "exif": b"Exif\0\0junk"}
    save_image(plain, tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as opened:
        assert embedded_texts(opened) == ("a red square", None)


@pytest.mark.parametrize("prompt", ["long " * 20_000, "💡" * 17_000])
def test_settings_too_long_for_jpeg(
    tmp_path: Path, prompt: str, caplog: pytest.LogCaptureFixture
) -> None:
    for suffix in FORMATS:
        path = tmp_path / f"a.{suffix}"
        save_image(image(prompt=prompt), path)
        with Image.open(path) as opened:
            text, settings = embedded_texts(opened)
        assert (text is None, settings is None) == (suffix == "jpg",) * 2
        assert source_type(path) == GENERATED
    (record,) = caplog.records
    assert "a.jpg: a JPEG file cannot hold settings of more than 64 KB" in record.getMessage()


def test_text_that_is_no_valid_unicode(tmp_path: Path) -> None:
    for suffix in FORMATS:
        save_image(image(negative_prompt="a\ud800b\0c"), tmp_path / f"a.{suffix}")
        with Image.open(tmp_path / f"a.{suffix}") as opened:
            text, settings = embedded_texts(opened)
        assert text is not None
        assert "Negative prompt: a?b\0c" in text
        assert settings is not None
        assert json.loads(settings)["negative_prompt"] == "a\ud800b\0c"


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le"])
def test_comment_in_either_byte_order(encoding: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a rød cirkel 🔴".encode(encoding)
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "JPEG", exif=exif)
    with Image.open(content) as opened:
        assert embedded_texts(opened)[0] == "a rød cirkel 🔴"


def test_quality_and_lossless(tmp_path: Path) -> None:
    sizes = []
    for quality in (30, 95):
        save_image(image(), tmp_path / "a.jpg", quality=quality)
        sizes.append((tmp_path / "a.jpg").stat().st_size)
        save_image(image(), tmp_path / "a.webp", quality=quality)
    assert sizes[0] < sizes[1]
    save_image(image(), tmp_path / "a.webp", lossless=True)
    with Image.open(tmp_path / "a.webp") as opened:
        assert opened.convert("RGB").tobytes() == image().tobytes()
        settings = embedded_texts(opened)[1]
    assert settings is not None
    assert json.loads(settings)["file"] == {"format": "webp", "lossless": True, "mark": True}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.png", {"quality": 90}, "quality is for JPEG and WebP"),
        ("a.jpg", {"quality": 0}, "quality must be 1 to 100, got 0"),
        ("a.jpg", {"lossless": True}, "lossless is for WebP"),
        ("a.webp", {"lossless": True, "quality": 3}, "lossless is for WebP files, without a qua"),
        ("a.jpg", {"format": "png"}, "a.jpg: the name is that of JPEG, the format is PNG"),
        ("a.gif", {}, "a.gif: use a name that ends in .png"),
        ("a.png", {"format": "gif"}, "unknown format 'gif'; choose png, jpeg or webp"),
        ("a.png", {"format": 3}, "unknown format 3"),
    ],
)
def test_wrong_options(tmp_path: Path, name: str, options: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        save_image(image(), tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written(tmp_path: Path) -> None:
    wrong: Any = "a.png"
    with pytest.raises(InvalidArgumentError, match="expected a Pillow image, got"):
        save_image(wrong, tmp_path / "a.png")
    with pytest.raises(InvalidArgumentError, match="image of mode RGBA, 8x8, cannot be written"):
        save_image(Image.new("RGBA", (8, 8)), tmp_path / "a.jpg")
    with pytest.raises(InvalidArgumentError, match="20000x1, cannot be written as WEBP"):
        save_image(Image.new("RGB", (20_000, 1)), tmp_path / "a.webp")
    for target in (io.StringIO(), 3, None):
        wrong = target
        with pytest.raises(InvalidArgumentError, match="expected a file name or a binary file"):
            save_image(Image.new("RGB", (8, 8)), wrong)
    save_image(Image.new("RGB", (8, 8)), tmp_path / "a.dat", format="JPG")
    assert [file.name for file in tmp_path.iterdir()] == ["a.dat"]
