"""Every damage to a checkpoint's configurations is a CheckpointError in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines.errors import CheckpointError
from sdexport.graphs.wrappers import parts

CONFIGS = (
    "model_index.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
)
OTHER_VALUES: tuple[Any, ...] = (None, "x", -1, 10**400, [], {"a": 1}, [[[]]])


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the demo model's configurations; its weights are links."""
    return shutil.copytree(checkpoint, tmp_path / "checkpoint", copy_function=_copy)


def _copy(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        Path(target).symlink_to(Path(source).resolve())
    else:
        shutil.copyfile(source, target)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, None], ids=range(6))
def test_damaged_file_is_a_checkpoint_error(folder: Path, name: str, content: bytes | None) -> None:
    path = folder / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=path.name) as error:
        Checkpoint.open(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_other_values_open_or_are_a_checkpoint_error(folder: Path, name: str) -> None:
    path = folder / name
    before = json.loads(path.read_text(encoding="utf-8"))
    for key in before:
        for value in OTHER_VALUES:
            path.write_text(json.dumps({**before, key: value}), encoding="utf-8")
            try:
                opened = Checkpoint.open(folder)
            except CheckpointError as error:
                assert "\n" not in str(error)
            else:
                assert opened.family and opened.downscale and all(opened.sample_size)
                assert parts(opened.configs)
