"""Memory that is said beforehand: warnings, errors, and the option that goes on all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sdexport.cli import main
from sdexport.commands import memory_check


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (4032, 3024), "gray").save(path)
    return path


def test_field_case_r8_photo_without_a_size(
    package: Path, photo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The size and how to limit it are said before the work; nothing is generated."""
    out = photo.with_name("a.png")
    result = call("generate", package, "x", "-o", out, "--image", photo, "--steps", 2)
    assert result.exit_code == 1 and not out.exists(), result.output
    (warning,), (error,) = caplog.messages, result.stderr.splitlines()
    assert "photo.jpg has 4032x3024 pixels, and the model's own size is 128x128" in warning
    assert "--size limits it" in warning
    assert error.startswith("error: an image of 4032x3024 needs about ")
    assert "use a smaller --size, or --low-memory, or begin anyway with --ignore-memory" in error
    caplog.clear()
    limited = call(
        *("generate", package, "x", "-o", out, "--image", photo, "--steps", 2, "--size", "128x96")
    )
    assert limited.exit_code == 0 and not caplog.messages, limited.output


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["generate", "PACKAGE", "x", "-o", "TMP/a.png", "--steps", "1"], "an image of 128x128"),
        (["verify", "PACKAGE"], "verifying this package"),
        (
            ["build", "PACKAGE", "--backend", "onnxruntime", "--engine-dir", "TMP/engines"],
            "this build",
        ),
        (["export", "CHECKPOINT", "TMP/exported"], "this export"),
    ],
)
def test_every_command_checks_before_the_work(
    command: list[str],
    what: str,
    package: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = {"PACKAGE": package, "CHECKPOINT": checkpoint, "TMP": tmp_path}
    for name, path in names.items():
        command = [part.replace(name, str(path)) for part in command]
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 1_000_000)
    result = call(*command)
    assert result.exit_code == 1 and list(tmp_path.iterdir()) == [], result.output
    assert result.stderr.startswith(f"error: {what} needs about "), result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""
    if command[0] != "export":  # which takes half a minute
        result = call(*command, "--ignore-memory")
        assert result.exit_code == 0, result.output
        assert caplog.messages[0].startswith(f"{what} needs about ")


def test_need_that_may_just_fit_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 100)
    memory_check.check_memory(125, "x", "y", ignore=False)
    with pytest.raises(MemoryError, match="x needs about"):
        memory_check.check_memory(126, "x", "y", ignore=False)
    memory_check.check_memory(None, "x", "y", ignore=False)
    monkeypatch.setattr(memory_check, "available_bytes", lambda: None)
    memory_check.check_memory(10**20, "x", "y", ignore=False)
