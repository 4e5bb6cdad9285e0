"""Folders that Optimum exported: read from their graphs and configurations alone.

tests/interop runs Optimum itself; these folders have its inputs and outputs and do not need it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sdexport import Package, PackageError, load_pipeline
from tests.helpers.optimum_folder import INT, LAYERS, hidden_state, write_optimum_folder

PROMPT, NEGATIVE = "a small yellow star", "a red circle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_optimum_folder(tmp_path_factory.mktemp("optimum") / "folder")


def test_optimum_folder_is_known_for_what_it_is(folder: Path) -> None:
    manifest = Package.load(folder).manifest
    assert manifest.family == "stable-diffusion-xl"
    assert (manifest.default_size, manifest.scaling_factor) == ((64, 64), 0.13025)


def test_optimum_folder_gives_the_last_but_one_layer(folder: Path) -> None:
    """Optimum writes one hidden state more than the export here: what leaves the last layer."""
    with load_pipeline(folder) as pipeline:
        encoded = pipeline.text_encoders.encode([PROMPT])
        ids = pipeline.tokenizer([PROMPT])
    expected = [hidden_state(ids, name, layers - 1) for name, layers in LAYERS.items()]
    np.testing.assert_array_equal(encoded.embeds, np.concatenate(expected, axis=-1))
    assert encoded.pooled is not None and encoded.pooled.shape == (1, 5)


def test_optimum_folder_skips_layers_from_there(folder: Path) -> None:
    with load_pipeline(folder) as pipeline:
        ids = pipeline.tokenizer([PROMPT])
        encoded = pipeline.text_encoders.encode([PROMPT], clip_skip=1)
        width = hidden_state(ids, "text_encoder", 0).shape[-1]
        np.testing.assert_array_equal(
            encoded.embeds[..., :width], hidden_state(ids, "text_encoder", 1)
        )
        with pytest.raises(ValueError, match="clip_skip must be one of 0, 1 with"):
            pipeline.text_encoders.encode([PROMPT], clip_skip=2)


def test_optimum_folder_generates_with_either_timestep(folder: Path, tmp_path: Path) -> None:
    """A float32 scalar as today, int64 of one entry as versions before."""
    older = write_optimum_folder(tmp_path / "older", ("timestep", INT, ["steps"]))
    images = []
    for each in (folder, older):
        with load_pipeline(each) as pipeline:
            result = pipeline(PROMPT, NEGATIVE, num_inference_steps=3, seed=1)
            other = pipeline("a blue square", NEGATIVE, num_inference_steps=3, seed=1)
        assert not np.array_equal(result.latents, other.latents)
        images.append(result.images[0].tobytes())
    assert images[0] == images[1]


def test_optimum_folder_generates_from_an_image(folder: Path) -> None:
    with load_pipeline(folder) as pipeline:
        image = pipeline(PROMPT, num_inference_steps=2, seed=1).images[0]
        result = pipeline(PROMPT, image=image, strength=0.5, num_inference_steps=4, seed=2)
    assert result.images[0].size == (64, 64)


def test_optimum_folder_with_damaged_layers(folder: Path, tmp_path: Path) -> None:
    copy = write_optimum_folder(tmp_path / "copy")
    path = copy / "text_encoder" / "config.json"
    path.write_text(json.dumps({"num_hidden_layers": "three"}))
    with pytest.raises(PackageError, match=r"text_encoder/config\.json: num_hidden_layers must be"):
        load_pipeline(copy)
