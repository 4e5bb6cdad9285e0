"""The examples in docstrings: they run as written, next to a checkpoint and a package."""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path

import pytest

import sdexport
from tests.helpers.low_precision import graphs_of

ROOT = Path(__file__).parents[1]
WITH_EXAMPLES = (
    "ClipTokenizer",
    "Package",
    "Pipeline",
    "Result",
    "TorchGenerator",
    "build",
    "export",
    "load_pipeline",
    "open_session",
    "save_image",
    "verify",
)
"""Names that a user meets first, each with an example of its own."""


def modules_with_examples() -> list[str]:
    """Every module whose text has a doctest prompt."""
    found = []
    for folder, package in (
        ("engines", "sdexport.engines"),
        ("runtime", "sdexport.runtime"),
        ("sdexport", "sdexport"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "sdexport" and parts[0] in ("engines", "runtime"):
                continue  # links to the two folders before
            if ">>> " in path.read_text(encoding="utf-8"):
                names = parts[:-1] if parts[-1] == "__init__" else parts
                found.append(".".join((package, *names)))
    return found


@pytest.fixture
def workspace(
    package: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working directory of an example: it holds the folders `checkpoint` and `package`."""
    shutil.copytree(package, tmp_path / "package")
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_module(name: str, package: Path) -> None:
    module = importlib.import_module(name)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    with graphs_of(package):
        for example in doctest.DocTestFinder(exclude_empty=True).find(module, name):
            runner.run(example, out=report.append)
    assert runner.tries > 0
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_exported_name_has_an_example(name: str) -> None:
    assert ">>> " in str(getattr(sdexport, name).__doc__)
