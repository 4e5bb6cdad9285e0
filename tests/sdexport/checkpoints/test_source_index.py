"""Field case C7: components that a package does not hold are named, and are not in its index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdexport import Package
from sdexport.checkpoints.source_index import package_index
from sdexport.checkpoints.sources import open_source
from sdexport.engines.errors import CheckpointError
from sdexport.exporter import export
from tests.helpers.file_kinds import file_kind
from tests.helpers.linked_folder import linked_folder

CHECKER = {
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "requires_safety_checker": True,
}


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return linked_folder(checkpoint, tmp_path / "checkpoint")


def change(folder: Path, **entries: Any) -> Path:
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    path.write_text(json.dumps({**index, **entries}), encoding="utf-8")
    return folder


@file_kind(
    "checkpoint",
    "diffusers folder with an image encoder or other components",
    recognised="entries of `model_index.json`",
    result="exported without them, with a warning",
    says="is not exported, so",
)
@pytest.mark.parametrize(
    ("entries", "meaning"),
    [
        (CHECKER, "are not checked: safety_checker/config.json is missing"),
        ({"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}, "IP-Adapter"),
        ({"upscaler": ["my_module", "Upscaler"]}, "images may differ from those of the checkpoint"),
    ],
)
def test_c7_components_that_are_not_exported(
    entries: dict[str, Any],
    meaning: str,
    says: str,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = open_source(change(folder, **entries))
    (record,) = caplog.records
    assert says in record.getMessage() and meaning in record.getMessage()
    index = package_index(opened.index, opened.configs)
    for name, value in index.items():
        assert name not in entries or value in ([None, None], True)
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["tokenizer"][1] == "CLIPTokenizer" and index["scheduler"][0] == "diffusers"


def test_c7_components_that_are_not_there_are_not_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty: dict[str, Any] = {"safety_checker": [None, None], "image_encoder": None}
    open_source(change(folder, **empty, requires_safety_checker=True))
    assert not caplog.text


def test_tokenizer_without_merges(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer is missing \(tokenizer/merges\.txt\)"):
        open_source(folder)


def test_c9_folder_around_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "dream.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"single file, give its path \(dream\.safetensors is"
    ):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["CLIPTokenizerFast", "T5Tokenizer"])
def test_c7_tokenizer_of_another_class(name: str, folder: Path) -> None:
    change(folder, tokenizer=["transformers", name])
    if name == "CLIPTokenizerFast":
        open_source(folder)
    else:
        with pytest.raises(CheckpointError, match=r"T5Tokenizer.*only CLIPTokenizer is exported"):
            open_source(folder)


def test_c7_package_names_only_what_it_holds(
    folder: Path, tmp_path: Path, without_tracing: None
) -> None:
    export(change(folder, **CHECKER, extra=["a", "B"]), tmp_path / "package")
    package = Package.load(tmp_path / "package")
    for name, value in package.model_index.items():
        if isinstance(value, list) and value != [None, None]:
            held = [name, f"{name}_decoder"]
            assert any((tmp_path / "package" / each).is_dir() for each in held), name
    assert package.model_index["safety_checker"] == [None, None]
    assert package.model_index["requires_safety_checker"] is True
