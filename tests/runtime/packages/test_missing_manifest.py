"""Deleting sdexport.json does not turn checks off; Optimum's folders say that they have none."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from sdexport import Package, PackageError
from sdexport.cli import main
from sdexport.demo_model import PACKAGE_DIR
from tests.helpers.changed_package import as_optimum_folder, remove_notes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package without its manifest."""
    folder = shutil.copytree(PACKAGE_DIR, tmp_path / "package")
    (folder / "sdexport.json").unlink()
    return folder


def remove_further_graphs(folder: Path) -> None:
    for path in folder.glob("*/*.onnx"):
        if path.name != "model.onnx":
            path.unlink()


def test_every_sign_of_an_export_counts(folder: Path) -> None:
    """One sign after the other is taken away; with the last one it is as Optimum's."""
    signs = {
        "there is reference/": lambda: shutil.rmtree(folder / "reference"),
        "there is text_encoder/": lambda: remove_further_graphs(folder),
        "was exported by sdexport": lambda: remove_notes(folder),
    }
    for sign, remove in signs.items():
        with pytest.raises(PackageError, match=r"sdexport\.json is missing, but") as error:
            Package.load(folder)
        assert sign in str(error.value) and "\n" not in str(error.value)
        remove()
    assert Package.load(folder).kind == "optimum"


@pytest.mark.parametrize(
    "name", ["SDEXPORT.JSON", "sdexport.json.bak", "Reference", "sdexport.sig", "sdexport.\x1b"]
)
def test_signs_in_other_names(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(PACKAGE_DIR, tmp_path / "package")
    as_optimum_folder(folder)
    (folder / name).touch()
    with pytest.raises(PackageError, match=r"sdexport\.json is missing, but") as error:
        Package.load(folder)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "command",
    [["inspect"], ["verify"], ["build", "--backend", "onnxruntime"], ["generate", "-o", "x.png"]],
)
def test_commands_reject_it(folder: Path, command: list[str]) -> None:
    prompt = ["a red circle"] if command[0] == "generate" else []
    done = CliRunner().invoke(main, [command[0], str(folder), *prompt, *command[1:]])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ") and "sdexport.json is missing, but" in done.stderr


def test_folder_of_optimum_says_that_nothing_was_verified(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(PACKAGE_DIR, tmp_path / "package")
    as_optimum_folder(folder)
    with caplog.at_level(logging.WARNING):
        loaded = Package.load(folder)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "nothing was verified" in caplog.text and "\n" not in caplog.records[0].getMessage()
    assert (loaded.kind, loaded.hashes_checked, loaded.digest) == ("optimum", False, None)
    done = CliRunner().invoke(main, ["inspect", str(folder)])
    assert done.exit_code == 0 and "not verified: there are no hashes" in done.stdout


def test_package_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = Package.load(PACKAGE_DIR)
    assert caplog.records == []
    assert (loaded.kind, loaded.hashes_checked) == ("package", True)
    assert not Package.load(PACKAGE_DIR, verify=False).hashes_checked
