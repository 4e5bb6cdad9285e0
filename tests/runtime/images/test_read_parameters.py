"""Settings read back from image files: exact ones, those of other programs, and damaged ones."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from sdexport import InvalidArgumentError, read_parameters, save_image
from sdexport.runtime.images.metadata import to_image
from sdexport.runtime.images.parameters import Parameters
from sdexport.runtime.images.read_infotext import read_infotext
from sdexport.runtime.images.recorded_values import InputImage

DIGEST = "0123456789abcdef" * 4
SETTINGS = Parameters(
    prompt="a röd (circle:1.2) 🔴\r\nNegative prompt: in the prompt\nSteps: 3, Sampler: x, Seed: 9",
    negative_prompt=" blurry\n",
    num_inference_steps=7,
    scheduler="dpm++_2m",
    schedule="karras",
    scheduler_options={"solver_type": "heun", "thresholding": True},
    sampler="DPM++ 2M",
    schedule_type="Karras",
    guidance_scale=0.1 + 0.2,
    seed=2**64 - 1,
    width=136,
    height=64,
    sigmas=(14.6, 1 / 3, 0.0),
    guidance_rescale=1e-300,
    guidance_interval=(0.25, 0.8),
    cache_interval=(0.0, 1.0),
    image=(InputImage(DIGEST, "a, b: c.png"), InputImage(DIGEST)),
    strength=0.75,
    mask_image=(InputImage(DIGEST, "mask.png"),),
    resize_mode="crop",
    noise_device="cuda",
    prompt_style="automatic1111",
    prompt_weights=True,
    clip_skip=2,
    token_embeds={"red": "blue", "puppy": {"puppy": 0.5, "skunk": 0.5}},
    original_size=(1024, 768),
    crops_coords_top_left=(1, 2),
    eta=0.3,
    batch_size=3,
    batch_index=1,
    prompts=("a", "b", "c"),
    seeds=(1, 2, 2**64 - 1),
    external={"latents": "float32 (1, 4, 8, 8) sha256:00"},
    vae_tile=64,
    max_batch=2,
    model='a "model", with: Seed: 3',
    model_hash=DIGEST,
    backend={"unet": "openvino,precision=bf16", "vae_decoder": "onnxruntime"},
    precision="fp16",
    options={"threads": 2},
    engines=("unet",),
)


def image(parameters: Parameters) -> Image.Image:
    return to_image(np.zeros((8, 8, 3), np.uint8), parameters)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_every_setting_reads_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    save_image(image(SETTINGS), path)
    found = read_parameters(path)
    assert found.file is not None
    assert found.file["format"] == {"jpg": "jpeg"}.get(suffix, suffix)
    assert replace(found, file=None) == SETTINGS
    assert read_parameters(io.BytesIO(path.read_bytes())) == found
    with Image.open(path) as opened:
        assert read_parameters(opened) == found
    assert read_parameters(image(SETTINGS)) == SETTINGS


def test_own_text_without_the_json() -> None:
    """What other programs keep, the text, holds nearly everything."""
    plain = replace(
        SETTINGS,
        prompt="a red\ncircle",
        negative_prompt="blurry",
        image=(InputImage(DIGEST[:10]),),
        mask_image=None,
        token_embeds=None,
        prompts=None,
        seeds=None,
        external={},
        model_hash=DIGEST[:10],
        backend="openvino,precision=bf16",
        options={},
        engines=(),
    )
    only_text = Image.new("RGB", (8, 8))
    only_text.info["parameters"] = str(plain)
    assert read_parameters(only_text) == plain


def test_text_of_automatic1111() -> None:
    text = (
        "a (red:1.3) circle, masterpiece\nsecond line\nNegative prompt: low quality, (bad:1.2)\n"
        "more\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 965400086, Size: 512x768, "
        'Model hash: 6ce0161689, Model: v1-5-pruned, VAE: "my, vae", Clip skip: 2, '
        'Denoising strength: 0.55, Lora hashes: "a: 0b, c: d", Version: v1.10.0'
    )
    only_text = Image.new("RGB", (8, 8))
    only_text.info["parameters"] = text
    found = read_parameters(only_text)
    assert found.prompt == "a (red:1.3) circle, masterpiece\nsecond line"
    assert found.negative_prompt == "low quality, (bad:1.2)\nmore"
    assert (found.num_inference_steps, found.guidance_scale) == (20, 7.5)
    assert (found.scheduler, found.sampler) == ("euler_a", "Euler a")
    assert (found.seed, found.width, found.height) == (965400086, 512, 768)
    assert (found.clip_skip, found.strength, found.model_hash) == (1, 0.55, "6ce0161689")
    assert found.prompt_style == "automatic1111", "it always reads weights"
    assert found.noise_device == "cuda", "its noise is the GPU's unless the text says otherwise"
    assert found.not_understood == {"VAE": "my, vae", "Lora hashes": "a: 0b, c: d"}


@pytest.mark.parametrize(
    ("version", "device"),
    [
        ("", "cuda"),
        (", Version: v1.3.2", "cuda"),
        (", Version: f2.0.1v1.10.1", "cuda"),
        (", Version: ComfyUI", "cpu"),
        (", RNG: CPU, Version: v1.3.2", "cpu"),
        (", RNG: NV", "cuda"),
    ],
)
def test_noise_of_other_programs(version: str, device: str) -> None:
    values, _ = read_infotext(f"x\nSteps: 4, Sampler: Euler, Seed: 1{version}")
    assert values["noise_device"] == device


def test_unusual_texts() -> None:
    long = "Steps: 3, Sampler: Euler, Seed: 1, Note: " + "a" * 65_536
    for text in (
        "",
        "a prompt",
        "a: b",
        "Steps: 3, Seed: 1",
        "Negative prompt: x\nno settings",
        long,
    ):
        with pytest.raises(ValueError, match="no line with steps"):
            read_infotext(text)
    values, rest = read_infotext("\nSteps: many, Sampler: Euler, Seed: 1, Size: 5, Clip skip: 0")
    assert rest == {"Steps": "many", "Size": "5"}
    assert (values["prompt"], values["clip_skip"]) == ("", 0)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of one pixel with further chunks before the pixels."""
    content = io.BytesIO()
    Image.new("RGB", (1, 1)).save(content, "PNG")
    start = content.getvalue().index(b"IDAT") - 4
    made = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return content.getvalue()[:start] + made + content.getvalue()[start:]


def with_json(value: object) -> Callable[[], bytes]:
    text = value if isinstance(value, str) else json.dumps(value)
    return lambda: png((b"tEXt", b"sdexport\0" + text.encode()))


def jpeg(**metadata: Any) -> Callable[[], bytes]:
    def made() -> bytes:
        content = io.BytesIO()
        Image.new("RGB", (8, 8)).save(content, "JPEG", **metadata)
        return content.getvalue()

    return made


def truncated() -> bytes:
    content = io.BytesIO()
    save_image(image(SETTINGS), content)
    return content.getvalue()[:300]


FINE = json.loads(SETTINGS.to_json())
DAMAGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"no image",
    "truncated": truncated,
    "no settings": lambda: png(),
    "not JSON": with_json("{"),
    "no object": with_json([1]),
    "deep": with_json("[" * 100_000),
    "deep value": with_json(
        '{"prompt": "x", "token_embeds": {"a": ' + "[" * 900 + "]" * 900 + "}}"
    ),
    "NaN": with_json('{"prompt": "x", "guidance_scale": NaN}'),
    "huge number": with_json('{"prompt": "x", "seed": ' + "9" * 5000 + "}"),
    "large number": with_json(FINE | {"seed": 2**70}),
    "no prompt": with_json({"seed": 1}),
    "wrong type": with_json(FINE | {"num_inference_steps": "__import__('os')"}),
    "boolean": with_json(FINE | {"clip_skip": True}),
    "list": with_json(FINE | {"guidance_interval": [0, 1, 2]}),
    "digest": with_json(FINE | {"image": [{"sha256": "../../x", "name": "y"}]}),
    "batch": with_json(FINE | {"batch_index": 3}),
    "batch list": with_json(FINE | {"prompts": ["a"]}),
    "batch size": with_json(FINE | {"batch_size": 10**9, "prompts": None, "seeds": None}),
    "zip bomb": lambda: png((b"zTXt", b"sdexport\0\0" + zlib.compress(bytes(2**26)))),
    "zip damage": lambda: png((b"zTXt", b"sdexport\0\0garbage")),
    "long text": lambda: png((b"tEXt", b"sdexport\0" + b" " * (2**24 + 1))),
    "spaces": lambda: png((b"tEXt", b"parameters\0" + b" " * 2**20)),
    "letters": lambda: png((b"tEXt", b"parameters\0" + b"a" * 2**20)),
    "quotes": lambda: png((b"tEXt", b"parameters\0" + b'a:"\\' * 2**18)),
    "EXIF garbage": jpeg(exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(range(256))),
    "EXIF comment": jpeg(exif=b"Exif\0\0garbage"),
    "XMP garbage": jpeg(xmp=b"\xff\xfe<x sdexport:parameters='{'/>"),
    "XML bomb": jpeg(xmp=b'<!DOCTYPE a [<!ENTITY b "c">]><a sdexport:parameters="&b;&b;"/>'),
    "GIF": lambda: b"GIF89a" + bytes(20),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_settings_are_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(DAMAGED[kind]())
    with pytest.raises(InvalidArgumentError) as caught:
        read_parameters(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300


def test_no_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no image at"):
        read_parameters(tmp_path / "a.png")
    wrong: Any = 3
    with pytest.raises(InvalidArgumentError, match="expected a file or a Pillow image, got 3"):
        read_parameters(wrong)


def test_settings_after_the_pixels_and_unknown_ones(tmp_path: Path) -> None:
    content = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    values = FINE | {"from_the_future": {"a": 1}}
    text.add(b"tEXt", b"sdexport\0" + json.dumps(values).encode(), after_idat=True)
    Image.new("RGB", (8, 8)).save(content, "PNG", pnginfo=text)
    found = read_parameters(content)
    assert found.not_understood == {"from_the_future": "{'a': 1}"}
    assert found.seed == SETTINGS.seed
