"""Which safety checkers of a checkpoint are exported, and what is said of the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdexport import CheckpointError
from sdexport.checkpoints.sources import Options, open_source
from sdexport.commands.export import export as export_command
from sdexport.demo_model import MODEL_DIR
from tests.helpers.file_kinds import file_kind
from tests.helpers.linked_folder import linked_folder
from tests.helpers.safety_checkpoint import add_safety_checker, random_checker

CHECKER, EXTRACTOR = "safety_checker", "feature_extractor"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = linked_folder(MODEL_DIR, tmp_path / "checkpoint")
    return add_safety_checker(copy, random_checker())


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.unlink()
    path.write_text(json.dumps(values), encoding="utf-8")


@file_kind(
    "checkpoint",
    "diffusers folder with a safety checker",
    recognised="`safety_checker` in `model_index.json`",
    result="exported as one more component, which `--safety` uses",
)
def test_checker_is_a_component(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = open_source(folder)
    assert CHECKER in opened.configs and not caplog.records
    module = opened.load(CHECKER)
    expected = random_checker()
    for name, weight in expected.named_parameters():
        torch.testing.assert_close(module.get_parameter(name), weight, rtol=0, atol=0)
    assert opened.count_weights(CHECKER) == sum(w.numel() for w in expected.parameters())


def test_checker_with_the_names_of_older_versions(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The published weights nest the vision model, and hold its positions."""
    path = folder / CHECKER / "model.safetensors"
    state = load_file(path)
    renamed = {
        f"vision_model.{k}" if k.startswith("vision_model.") else k: v for k, v in state.items()
    }
    renamed = {k.replace("vision_model." * 3, "vision_model." * 2): v for k, v in renamed.items()}
    renamed["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(renamed, path)
    module = open_source(folder).load(CHECKER)
    for name, weight in random_checker().named_parameters():
        torch.testing.assert_close(module.get_parameter(name), weight, rtol=0, atol=0)
    assert not caplog.records


def test_checker_in_half_precision(folder: Path) -> None:
    path = folder / CHECKER / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(path).items()}, path)
    module = open_source(folder).load(CHECKER)
    for name, weight in random_checker().named_parameters():
        expected = weight.half().float()
        torch.testing.assert_close(module.get_parameter(name), expected, rtol=0, atol=0)


def test_checker_is_left_out_on_demand(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_checker, without = (
        open_source(folder),
        open_source(folder, options=Options(no_safety_checker=True)),
    )
    assert CHECKER not in without.configs and not caplog.records
    assert without.source["sha256"] != with_checker.source["sha256"]
    assert "no_safety_checker" in {option.name for option in export_command.params}


def test_checker_of_a_changed_checkpoint(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = open_source(folder, options=Options(timestep_spacing="trailing"))
    assert CHECKER in opened.configs and opened.load(CHECKER) is not None
    shutil.rmtree(folder / EXTRACTOR)
    caplog.clear()
    opened = open_source(folder, options=Options(timestep_spacing="trailing"))
    assert CHECKER not in opened.configs
    (record,) = caplog.records
    assert "its safety_checker (StableDiffusionSafetyChecker) is not" in record.getMessage()


def _image_size(folder: Path) -> None:
    edit(folder / EXTRACTOR / "preprocessor_config.json", lambda v: v.update(crop_size=48))


LEFT_OUT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda f: shutil.rmtree(f / CHECKER), "safety_checker/config.json is missing"),
    "no extractor": (lambda f: shutil.rmtree(f / EXTRACTOR), "preprocessor_config.json is missing"),
    "no weights": (lambda f: (f / CHECKER / "model.safetensors").unlink(), "missing model.safet"),
    "pickle": (
        lambda f: (f / CHECKER / "model.safetensors").rename(f / CHECKER / "pytorch_model.bin"),
        "--allow-pickle",
    ),
    "other class": (
        lambda f: edit(
            f / "model_index.json", lambda v: v.update(safety_checker=["my", "Checker"])
        ),
        "only StableDiffusionSafetyChecker is",
    ),
    "no JSON": (lambda f: (f / CHECKER / "config.json").write_text("{"), "config.json is damaged"),
    "vision": (
        lambda f: edit(f / CHECKER / "config.json", lambda v: v.update(vision_config=3)),
        "config.json is damaged",
    ),
    "channels": (
        lambda f: edit(
            f / CHECKER / "config.json", lambda v: v["vision_config"].update(num_channels=4)
        ),
        "its images have 4 channels, not 3",
    ),
    "other size": (_image_size, "makes images of another size than 32x32"),
    "other extractor": (
        lambda f: edit(
            f / EXTRACTOR / "preprocessor_config.json",
            lambda v: v.update(image_processor_type="ViTImageProcessor"),
        ),
        "'ViTImageProcessor' is not supported",
    ),
}


@file_kind(
    "checkpoint",
    "diffusers folder with a safety checker without weights, without a feature extractor, or of "
    "another kind",
    recognised="`safety_checker` in `model_index.json`",
    result="exported without it, with a warning",
    says="is not exported, so images are not checked: ",
)
@pytest.mark.parametrize("case", LEFT_OUT)
def test_checker_that_cannot_be_exported_is_named(
    case: str, says: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, reason = LEFT_OUT[case]
    damage(folder)
    assert CHECKER not in open_source(folder).configs
    (record,) = caplog.records
    message = record.getMessage()
    assert says in message and reason in message
    assert "\n" not in message


def test_family_without_a_checker(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    from sdexport.checkpoints.safety_checker_source import why_not_exported

    index = json.loads((folder / "model_index.json").read_text())
    assert why_not_exported(folder, index, reads=True) is None
    index["_class_name"] = "StableDiffusionXLPipeline"
    assert why_not_exported(folder, index, reads=True) == "a StableDiffusionXLPipeline has none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("concept_embeds"), "weights are missing or of another shape"),
        (lambda s: s.update(concept_embeds=torch.ones(16, 24)), "of another shape, such as con"),
        (lambda s: s["concept_embeds"].fill_(float("nan")), "holds NaN or infinity"),
        (lambda s: s.update(extra=torch.ones(3)), "would not be used by a StableDiffusionSafety"),
    ],
)
def test_damaged_weights_are_an_error(
    change: Callable[[dict[str, Any]], object], message: str, folder: Path
) -> None:
    path = folder / CHECKER / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    with pytest.raises(CheckpointError, match=message):
        open_source(folder).load(CHECKER)
