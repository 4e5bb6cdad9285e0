"""The input of CLIP's vision models compared with transformers' CLIPImageProcessor: bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sdexport.runtime.images.clip_image import ClipImageProcessor
from tests.helpers.random_pictures import random_picture

PUBLISHED: dict[str, Any] = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPFeatureExtractor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
    "use_square_size": False,
}
"""feature_extractor/preprocessor_config.json of Stable Diffusion 1.5."""
OLDER = {"crop_size": 224, "size": 224, "feature_extractor_type": "CLIPFeatureExtractor"}
CONFIGS: dict[str, dict[str, Any]] = {
    "published": PUBLISHED,
    "older": OLDER,
    "empty": {},
    "small": {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}},
    "crop is larger": {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 28}},
    "crop is wider": {"size": 25, "crop_size": {"height": 20, "width": 41}},
    "bilinear": {"size": 31, "crop_size": 31, "resample": 2},
    "fixed size": {"size": {"height": 20, "width": 30}, "do_center_crop": False},
    "square": {"use_square_size": True, "crop_size": 200},
    "not resized": {"do_resize": False, "crop_size": 40},
    "not rescaled": {"do_rescale": False, "size": 24, "crop_size": 24},
    "not normalised": {"do_normalize": False, "size": 24, "crop_size": 24},
    "levels": {"do_normalize": False, "do_rescale": False, "size": 24, "crop_size": 24},
    "one number": {"image_mean": 0.5, "image_std": 0.25, "size": 24, "crop_size": 24},
    "other scale": {"rescale_factor": 0.01, "size": 24, "crop_size": 24},
}
SIZES = [(1, 1), (7, 60), (60, 7), (24, 24), (63, 50), (225, 224), (1, 90)]


def expected(config: dict[str, Any], images: list[Image.Image]) -> np.ndarray:
    values = CLIPImageProcessorPil(**config)(images, return_tensors="np")["pixel_values"]
    return np.asarray(values)


@pytest.mark.parametrize("name", CONFIGS)
def test_input_equals_that_of_transformers(name: str) -> None:
    rng = np.random.default_rng(0)
    processor = ClipImageProcessor.from_config(CONFIGS[name])
    for size in SIZES:
        pair = [Image.fromarray(random_picture(rng, "photograph", *size)) for _ in range(2)]
        actual = processor(pair)
        assert actual.dtype == np.float32 and actual.flags.c_contiguous
        np.testing.assert_array_equal(actual, expected(CONFIGS[name], pair), str(size))
        assert processor.output_size in (None, actual.shape[2:])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_images_as_in_transformers(mode: str) -> None:
    levels = random_picture(np.random.default_rng(1), "shapes", 40, 50)
    alpha = random_picture(np.random.default_rng(2), "gradient", 40, 50)[..., :1]
    image = Image.fromarray(np.concatenate([levels, alpha], 2))
    image = image if mode == "RGBA" else image.convert("RGB").convert(mode)
    if mode == "LA":
        image.putalpha(Image.fromarray(alpha[..., 0]))
    config = CONFIGS["small"]
    actual = ClipImageProcessor.from_config(config)([image])
    np.testing.assert_array_equal(actual, expected(config, [image]))


def test_very_long_image_takes_little_memory() -> None:
    """Resized as a whole, this image would have 22 gigabytes."""
    image = Image.new("RGB", (4_000_000, 8))
    image.paste((255, 255, 255), (2_000_000, 0, 4_000_000, 8))
    processor = ClipImageProcessor.from_config({"do_normalize": False})
    (pixels,) = processor([image])
    assert pixels.shape == (3, 224, 224)
    assert pixels[:, :, :90].max() == 0
    assert pixels[:, :, 134:].min() == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": {"longest_edge": 224}}, "size"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "is not supported"),
        ({"size": 0}, "size must be 1 to 2048"),
        ({"size": "224"}, "size must be an integer"),
        ({"crop_size": {"height": 5}}, "crop_size"),
        ({"crop_size": [1, 2, 3]}, "crop_size must be"),
        ({"resample": 9}, "resample must be 0 to 5"),
        ({"image_mean": [1, 2]}, "image_mean must hold 3 numbers"),
        ({"image_std": [0.1, 0, 0.1]}, "image_std must not be 0"),
        ({"image_std": [0.1, float("nan"), 0.1]}, "image_std"),
        ({"rescale_factor": float("inf")}, "rescale_factor must be"),
        ({"do_resize": "yes"}, "do_resize must be True or False"),
        ({"do_pad": True}, "do_pad is not supported"),
        ({"image_processor_type": "ViTImageProcessor"}, "'ViTImageProcessor' is not supported"),
        ({"feature_extractor_type": "BitImageProcessor"}, "'BitImageProcessor' is not supported"),
    ],
)
def test_configurations_that_make_no_sense(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipImageProcessor.from_config(config)


def test_images_of_different_sizes_need_a_crop() -> None:
    processor = ClipImageProcessor.from_config({"do_center_crop": False, "size": 8})
    with pytest.raises(ValueError, match="same size"):
        processor([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 16))])
