"""Field case C4: CosXL and Playground v2.5 against diffusers, from single files and folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdexport.checkpoints.published_configs import EDM_DPM_SOLVER, EDM_EULER
from sdexport.checkpoints.single_file import SingleFile
from sdexport.engines.errors import CheckpointError
from tests.helpers.diffusers_images import (
    NEGATIVE,
    PROMPT,
    assert_same_images,
    generate_with_diffusers,
)
from tests.helpers.families import build
from tests.helpers.file_kinds import file_kind
from tests.helpers.original_layout import SMALL, original_layout, random_modules
from tests.helpers.pipeline_over_torch import over_torch

MEAN, STD = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
"""Of Playground v2.5, as its VAE's configuration gives them."""
PLAYGROUND = {"latents_mean": MEAN, "latents_std": STD, "scaling_factor": 0.5}
MODELS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "cosxl": (EDM_EULER, {}),
    "playground": (EDM_DPM_SOLVER, PLAYGROUND),
}
XL = SMALL[2]


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our pipeline and that of diffusers on the same small checkpoint."""
    scheduler, vae = MODELS[request.param]
    folder = build("sdxl", tmp_path_factory.mktemp("edm") / "checkpoint")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **vae}))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    path = folder / "model_index.json"
    entry = {"scheduler": ["diffusers", scheduler["_class_name"]]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    return over_torch(folder), theirs


@file_kind(
    "checkpoint",
    "diffusers folder with EDM scheduling",
    recognised="`EDMEulerScheduler` (CosXL), `EDMDPMSolverMultistepScheduler` (Playground v2.5), "
    "`latents_mean` and `latents_std` of the VAE",
    result="loaded",
)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_c4_text_to_image_equals_diffusers(both: Any, guidance: float) -> None:
    ours, theirs = both
    arguments = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 5}
    arguments["guidance_scale"] = guidance
    expected = generate_with_diffusers(theirs, 7, **arguments)
    assert np.ptp(expected) > 20, "the image is nearly flat and would prove nothing"
    assert_same_images(ours(seed=7, **arguments), expected)


def test_c4_image_to_image_equals_diffusers(both: Any) -> None:
    ours, theirs = both
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((64, 64))
    arguments = {"prompt": PROMPT, "image": image, "num_inference_steps": 6, "strength": 0.5}
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(theirs)
    pipeline.set_progress_bar_config(disable=True)
    expected = generate_with_diffusers(pipeline, 3, **arguments)
    assert_same_images(ours(seed=3, **arguments), expected)


@file_kind(
    "checkpoint",
    "CosXL in one file",
    recognised="`edm_vpred.sigma_max` and `edm_vpred.sigma_min`",
    result="loaded with EDM scheduling and v-prediction",
)
def test_c4_cosxl_file(tmp_path: Path) -> None:
    marks = {
        "edm_vpred.sigma_max": torch.tensor(120.0),
        "edm_vpred.sigma_min": torch.tensor(0.002),
    }
    save_file(original_layout(XL, random_modules(XL)) | marks, tmp_path / "a.safetensors")
    family = SingleFile.open(tmp_path / "a.safetensors", families=SMALL).family
    assert family.scheduler == EDM_EULER and family.pipeline == "StableDiffusionXLPipeline"
    marks["edm_vpred.sigma_max"] = torch.tensor(80.0)
    save_file(original_layout(XL, random_modules(XL)) | marks, tmp_path / "a.safetensors")
    family = SingleFile.open(tmp_path / "a.safetensors", families=SMALL).family
    assert family.scheduler["sigma_max"] == 80.0


@file_kind(
    "checkpoint",
    "Playground v2.5 in one file",
    recognised="`edm_mean` and `edm_std`",
    result="loaded with EDM scheduling and normalised latents",
)
def test_c4_playground_file(tmp_path: Path) -> None:
    marks = {"edm_mean": torch.tensor(MEAN), "edm_std": torch.tensor(STD).reshape(1, 4, 1, 1)}
    save_file(original_layout(XL, random_modules(XL)) | marks, tmp_path / "a.safetensors")
    family = SingleFile.open(tmp_path / "a.safetensors", families=SMALL).family
    assert family.scheduler == EDM_DPM_SOLVER
    assert {key: family.vae[key] for key in PLAYGROUND} == PLAYGROUND


@pytest.mark.parametrize(
    ("family", "marks", "message"),
    [
        (SMALL[0], {"edm_vpred.sigma_max": torch.ones(())}, "mark it as CosXL, but it is"),
        (XL, {"edm_mean": torch.ones(4)}, "Playground v2.5, but edm_std is missing"),
        (XL, {"edm_mean": torch.ones(3), "edm_std": torch.ones(4)}, "expected 4 finite numbers"),
        (XL, {"edm_mean": torch.ones(4), "edm_std": torch.full((4,), torch.nan)}, "finite"),
        (XL, {"edm_vpred.sigma_max": torch.ones(2)}, "expected 1 finite numbers"),
        (XL, {"edm_vpred.other": torch.ones(1)}, r"1 weight \(edm_vpred.other\)"),
    ],
)
def test_c4_marks_that_make_no_sense(
    family: Any, marks: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    save_file(original_layout(family, random_modules(family)) | marks, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=message) as error:
        SingleFile.open(tmp_path / "a.safetensors", families=SMALL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "vae",
    [
        {"latents_mean": [1.0] * 4},
        {"latents_mean": [1.0] * 3, "latents_std": [1.0] * 3},
        {"latents_mean": [1.0] * 4, "latents_std": [0.0] * 4},
        {"latents_mean": "x", "latents_std": 3},
    ],
)
def test_c4_normalisation_that_makes_no_sense(vae: dict[str, Any], tmp_path: Path) -> None:
    from sdexport.checkpoints.diffusers_folder import Checkpoint

    folder = build("sdxl", tmp_path / "checkpoint")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **vae}))
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(folder)
    assert "\n" not in str(error.value)
    shutil.rmtree(folder)


def test_c4_normalised_latents_of_sd1_are_rejected(tmp_path: Path) -> None:
    """diffusers' pipeline of SD 1 ignores them."""
    from sdexport.checkpoints.diffusers_folder import Checkpoint

    folder = build("sd1", tmp_path / "checkpoint")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **PLAYGROUND}))
    with pytest.raises(CheckpointError, match="a vae without latents_mean and latents_std"):
        Checkpoint.open(folder)
