"""Adapters that are repositories of the hub: what is downloaded of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from sdexport.checkpoints.adapter_source import open_adapter
from sdexport.engines.errors import CheckpointError
from tests.helpers.image_adapters import random_t2i_adapter

WEIGHTS = "diffusion_pytorch_model.safetensors"


class Hub:
    """A repository, and the folder into which its files are downloaded."""

    def __init__(self, folder: Path) -> None:
        self.repository, self.cache = folder / "repository", folder / "0123"
        random_t2i_adapter("full_adapter").save_pretrained(self.repository)
        for name in (f"sub/{WEIGHTS}", f"sub/below/{WEIGHTS}", "sub/config.json", "other.bin"):
            path = self.repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"{}")

    def download(
        self,
        name: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str] | None = None,
    ) -> str:
        files = [p.relative_to(self.repository) for p in self.repository.rglob("*") if p.is_file()]
        chosen = filter_repo_objects(
            [file.as_posix() for file in files],
            allow_patterns=allow_patterns,
            ignore_patterns=ignore_patterns,
        )
        for file in chosen:
            (self.cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / file, self.cache / file)
        return str(self.cache)

    @property
    def downloaded(self) -> list[str]:
        files = (path for path in self.cache.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.cache).as_posix() for path in files)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", found.download)
    return found


def test_only_the_files_at_the_top(hub: Hub) -> None:
    opened = open_adapter("name/adapter", revision="main")
    assert opened.source == {"type": "hub", "id": "name/adapter", "revision": "0123"}
    assert hub.downloaded == ["config.json", WEIGHTS]
    opened.load("t2i_adapter")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("diffusion_pytorch_model.fp16.safetensors", {}),
        ("diffusion_pytorch_model.fp16.safetensors", {"variant": "fp16"}),
        ("diffusion_pytorch_model.bf16.safetensors", {"variant": "bf16"}),
    ],
)
def test_variants(name: str, options: dict[str, Any], hub: Hub) -> None:
    (hub.repository / WEIGHTS).rename(hub.repository / name)
    open_adapter("name/adapter", **options).load("t2i_adapter")
    assert hub.downloaded == ["config.json", name]


def test_pickles_need_the_option(hub: Hub) -> None:
    (hub.repository / WEIGHTS).unlink()
    random_t2i_adapter("full_adapter").save_pretrained(hub.repository, safe_serialization=False)
    with pytest.raises(CheckpointError, match=r"name/adapter: no weights .*--allow-pickle"):
        open_adapter("name/adapter")
    assert hub.downloaded == ["config.json"]
    open_adapter("name/adapter", allow_pickle=True).load("t2i_adapter")
    assert "diffusion_pytorch_model.bin" in hub.downloaded
    assert not any("/" in name for name in hub.downloaded)


def test_other_classes_are_not_downloaded(hub: Hub) -> None:
    config = {"_class_name": "SparseControlNetModel"}
    (hub.repository / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="SparseCtrl"):
        open_adapter("name/adapter")
    assert hub.downloaded == ["config.json"]
    (hub.cache / "config.json").unlink()
    (hub.repository / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json at the top .* IP-Adapters"):
        open_adapter("name/adapter")
    assert hub.downloaded == []
