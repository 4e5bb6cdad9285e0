"""Field cases C4, C5 and C6: what a single file says about its prediction and its timesteps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sdexport.checkpoints.file_family import family_of
from sdexport.checkpoints.file_metadata import check_metadata
from sdexport.checkpoints.file_prediction import warn_about_name
from sdexport.checkpoints.published_configs import SingleFileFamily
from sdexport.checkpoints.single_file import SingleFile
from sdexport.checkpoints.sources import Options, open_source
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers.noise_schedules import alphas_cumprod, betas
from tests.helpers.file_kinds import file_kind
from tests.helpers.linked_folder import linked_folder
from tests.helpers.original_layout import SMALL, original_layout, random_modules

SD1, SD2, SDXL, REFINER = SMALL


def opened(
    folder: Path,
    family: Any,
    metadata: dict[str, str] | None = None,
    chosen: str | None = None,
    **extra: torch.Tensor,
) -> SingleFileFamily:
    """The family of a file, without one: its weights are not looked at."""
    tensors = original_layout(family, random_modules(family)) | extra
    file = WeightFile(folder / "a.safetensors", tensors, metadata or {}, tensors)
    found = family_of(file, SMALL, chosen)
    check_metadata(file, found)
    return found


@file_kind(
    "checkpoint",
    "single file with metadata of its prediction type",
    recognised="`modelspec.predict_key`, `modelspec.prediction_type`, `modelspec.architecture`, "
    "or tensors `v_pred` and `ztsnr`",
    result="loaded with that prediction type",
)
@pytest.mark.parametrize("family", [SD1, SD2, SDXL], ids=lambda family: family.name)
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("modelspec.predict_key", "v", "v_prediction"),
        ("modelspec.predict_key", "epsilon", "epsilon"),
        ("modelspec.predict_key", "V-Prediction", "v_prediction"),
        ("modelspec.predict_key", "x0", "sample"),
        ("modelspec.prediction_type", "v", "v_prediction"),
        ("modelspec.prediction_type", " eps ", "epsilon"),
        ("ss_v_parameterization", "True", "v_prediction"),
    ],
)
def test_c5_metadata_decides(
    key: str, value: str, expected: str, family: Any, tmp_path: Path
) -> None:
    family_ = opened(tmp_path, family, {key: value})
    assert family_.scheduler["prediction_type"] == expected


@pytest.mark.parametrize(
    ("architecture", "expected", "side"),
    [
        ("stable-diffusion-v2-768-v", "v_prediction", 96),
        ("stable-diffusion-v2-512", "epsilon", 64),
        ("stable-diffusion-v2-512/something", "epsilon", 64),
    ],
)
def test_c5_architecture_decides(
    architecture: str,
    expected: str,
    side: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    family = opened(tmp_path, SD2, {"modelspec.architecture": architecture})
    assert family.scheduler["prediction_type"] == expected
    assert family.unet["sample_size"] == side and not caplog.text


def test_c5_option_overrides_the_file(tmp_path: Path) -> None:
    family_ = opened(tmp_path, SDXL, {"modelspec.predict_key": "v"}, "epsilon")
    assert family_.scheduler["prediction_type"] == "epsilon"


def test_c5_contradiction_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    family_ = opened(tmp_path, SDXL, {"modelspec.predict_key": "epsilon"}, v_pred=torch.zeros(0))
    assert family_.scheduler["prediction_type"] == "v_prediction"
    assert "v_pred says v_prediction, modelspec.predict_key says epsilon" in caplog.text


def test_c5_unknown_value_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    family_ = opened(tmp_path, SD1, {"modelspec.predict_key": "flow"})
    assert family_.scheduler["prediction_type"] == "epsilon"
    assert "modelspec.predict_key is 'flow', which is unknown" in caplog.text


def test_c5_unknown_metadata_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = {"format": "pt", "ss_steps": "3", "modelspec.author": "A", "workflow": "{}"}
    opened(tmp_path, SD1, known)
    assert not caplog.text
    opened(tmp_path, SD1, {**known, "sampling_rule": "x", **{f"z{i}": "" for i in range(6)}})
    assert "unknown metadata is ignored: sampling_rule, z0, z1, z2, z3 and 2 more" in caplog.text


def test_c5_other_architecture_and_clip_skip_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path, SD1, {"modelspec.architecture": "stable-diffusion-xl-v1-base"})
    assert "calls it stable-diffusion-xl-v1-base, but its weights are those of" in caplog.text
    opened(tmp_path, SD1, {"modelspec.encoder_layer": "2"})
    assert "made for clip skip 2; generate its images with --clip-skip 1" in caplog.text


@pytest.mark.parametrize("step", [875_000, torch.tensor(875_000)])
def test_c5_training_step_of_sd2_base(step: Any, tmp_path: Path) -> None:
    """The rule of diffusers for the epsilon model of SD 2."""
    tensors = original_layout(SD2, random_modules(SD2))
    torch.save({"state_dict": tensors, "global_step": step}, tmp_path / "a.ckpt")
    file = SingleFile.open(tmp_path / "a.ckpt", allow_pickle=True, families=SMALL)
    assert file.family.scheduler["prediction_type"] == "epsilon"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_c5_noise_schedule_in_the_file(
    zero_snr: bool, dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = betas("scaled_linear", 0.00085, 0.012, 1000, None)
    table = torch.from_numpy(alphas_cumprod(plain, zero_terminal_snr=zero_snr)).to(dtype)
    scheduler = opened(tmp_path, SD1, alphas_cumprod=table).scheduler
    assert scheduler.get("rescale_betas_zero_snr", False) == zero_snr and not caplog.text
    opened(tmp_path, SD1, alphas_cumprod=table / 2)
    assert "its alphas_cumprod are not those of its family" in caplog.text


@file_kind(
    "checkpoint",
    "Turbo, Lightning and Hyper in one file",
    recognised="the words in `modelspec.title` or `modelspec.architecture`; otherwise "
    "`--timestep-spacing trailing` says so",
    result="loaded with trailing timesteps",
)
@pytest.mark.parametrize("family", [SD1, SD2, SDXL], ids=lambda family: family.name)
@pytest.mark.parametrize(
    "metadata",
    [
        {"modelspec.title": "SDXL Turbo 1.0"},
        {"modelspec.title": "my_lightning_4step"},
        {"modelspec.title": "Hyper-SD"},
        {"modelspec.architecture": "stable-diffusion-xl-turbo-v1"},
    ],
)
def test_c6_few_step_models_that_say_so(
    metadata: dict[str, str], family: Any, tmp_path: Path
) -> None:
    scheduler = opened(tmp_path, family, metadata).scheduler
    assert scheduler["timestep_spacing"] == "trailing"
    assert scheduler["prediction_type"] == "epsilon"
    assert opened(tmp_path, family).scheduler["timestep_spacing"] == "leading"


@pytest.mark.parametrize(
    ("spacing", "prediction"),
    [("leading", "epsilon"), ("trailing", "v_prediction"), ("linspace", "sample")],
)
def test_c6_options_for_a_folder(spacing: str, prediction: str, checkpoint: Path) -> None:
    options = Options(timestep_spacing=spacing, prediction_type=prediction)
    config = open_source(checkpoint, options=options).scheduler_config
    assert (config["timestep_spacing"], config["prediction_type"]) == (spacing, prediction)


@file_kind(
    "checkpoint",
    "single file whose name alone says few steps, LCM or v-prediction",
    recognised="words such as turbo, lightning, lcm or vpred in the file's name",
    result="loaded as the file says, with a warning that names the option",
)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sdxl_lightning_4step", "made for few steps; if it is, give --timestep-spacing trailing"),
        ("sd_xl_turbo_1.0_fp16", "made for few steps"),
        ("Hyper-SDXL-1step", "made for few steps"),
        ("dreamshaper_8LCM", "a latent consistency model"),
        ("dreamshaper-lcm", "by its name it is a latent consistency model"),
        ("noobaiXL_vPred10", "by its name it may predict v"),
        ("HyperRealism", ""),
        ("sd_xl_base_1.0", ""),
    ],
)
def test_c6_names_that_say_more_than_the_file(
    name: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = WeightFile(tmp_path / f"{name}.safetensors", {}, {}, {})
    warn_about_name(file, SDXL.scheduler, spacing=None, prediction=None)
    assert message in caplog.text and bool(message) == bool(caplog.records)
    caplog.clear()
    warn_about_name(file, SDXL.scheduler, spacing="trailing", prediction="v_prediction")
    assert not caplog.records or "latent consistency" in message


def test_c6_sample_prediction_replaces_pndm(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """PNDM is the scheduler of most folders of SD 1, and does not run such models."""
    folder = linked_folder(checkpoint, tmp_path / "pndm")
    for path, values in (
        ("scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}),
        ("model_index.json", {"scheduler": ["diffusers", "PNDMScheduler"]}),
    ):
        target = folder / path
        content = json.loads(target.read_text())
        target.unlink()
        target.write_text(json.dumps(content | values))
    opened = open_source(folder, options=Options(prediction_type="sample"))
    assert opened.scheduler_config["_class_name"] == "DDIMScheduler"
    assert opened.scheduler_config["prediction_type"] == "sample"
    assert opened.index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert caplog.text.count("DDIMScheduler is used instead") == 1


def test_c6_unknown_spacing(checkpoint: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"must be .* or .*, got 'first'"):
        open_source(checkpoint, options=Options(timestep_spacing="first"))
