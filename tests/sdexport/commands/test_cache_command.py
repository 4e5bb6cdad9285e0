"""sdexport cache: what it lists, what it deletes, and folders that it leaves alone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sdexport.cli import main
from sdexport.engines.cache import graph_cache, user_cache
from sdexport.engines.cache.profiles import Span
from sdexport.engines.cache.sidecar import Sidecar, StoredFile, sidecar_path
from tests.helpers.other_user import given_away

SIZES = {"decoder": 3_000_000, "unet": 5_000_000}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that does not exist yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(user_cache.VARIABLE, str(folder))
    monkeypatch.delenv(graph_cache.LIMIT_VARIABLE, raising=False)
    user_cache._warn_once.cache_clear()
    graph_cache._warn_once.cache_clear()
    return folder


@pytest.fixture
def filled(cache: Path) -> Path:
    """A cache of two graphs, of which the UNet was used last, and of a list of hashes."""
    folder = cache / "openvino"
    for number, (name, size) in enumerate(SIZES.items()):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        plan = folder / f"0123456789ab.{name}.key.blob"
        plan.write_bytes(bytes(size))
        sidecar = Sidecar(
            component=name,
            backend="openvino",
            library_version="2026.4",
            onnx_sha256="0" * 64,
            graph_sha256="",
            target={},
            profiles=({"height": Span(32, 32, 32)},) if number else (),
            options={"precision": "bf16"},
            inputs=(),
            outputs=(),
            files={plan.name: StoredFile.of(plan)},
        )
        sidecar_path(plan).write_text(sidecar.to_json(), encoding="utf-8")
        used = time.time() - 1000 + number
        os.utime(sidecar_path(plan), (used, used))
    (cache / "hashes").mkdir(mode=0o700)
    (cache / "hashes" / "hashes-1.json").write_text("{}", encoding="utf-8")
    return cache


def call(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["cache", *arguments])


def test_no_cache_is_empty_and_not_created(cache: Path) -> None:
    result = call()
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        str(cache),
        "0.0 MB, of at most 24,000.0 MB for graphs",
    ]
    assert json.loads(call("--json").stdout)["graphs"] == []
    assert json.loads(call("--clear", "--json").stdout) == {"freed": 0}
    assert not cache.exists()


def test_graphs_are_listed_the_last_used_one_first(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(graph_cache.LIMIT_VARIABLE, "0.5")
    folder, unet, decoder, total = call().stdout.splitlines()
    assert folder == str(filled)
    assert unet.split()[:3] == ["unet", "5.0", "MB"] and unet.endswith("bf16, height 32")
    assert decoder.split()[:3] == ["decoder", "3.0", "MB"] and decoder.endswith("bf16, all sizes")
    assert "openvino 2026.4" in unet
    assert total == "8.0 MB, of at most 500.0 MB for graphs"
    found = json.loads(call("--json").stdout)
    assert found["limit"] == 500_000_000 and found["problem"] == ""
    files = [file for file in filled.rglob("*") if file.is_file()]
    assert found["size"] == sum(file.stat().st_size for file in files)
    assert [graph["component"] for graph in found["graphs"]] == ["unet", "decoder"]
    assert found["graphs"][0]["profiles"] == [{"height": "32:32:32"}]


def test_damaged_graph_is_named(filled: Path) -> None:
    sidecar = filled / "openvino" / "0123456789ab.unet.key.json"
    sidecar.write_text("{", encoding="utf-8")
    line = next(each for each in call().stdout.splitlines() if "unet" in each)
    assert "is damaged" in line
    (entry,) = [g for g in json.loads(call("--json").stdout)["graphs"] if g["problem"]]
    assert entry["component"] == "" and entry["file"].endswith("unet.key.blob")


def test_clear_deletes_what_is_the_caches_and_nothing_else(filled: Path) -> None:
    (filled / "openvino" / ".stray.part").write_bytes(bytes(1_000_000))  # of a killed process
    other = filled / "notes.txt"
    other.write_text("mine", encoding="utf-8")
    assert call("--clear").stdout == "9.0 MB freed\n"
    assert [path for path in filled.rglob("*") if path.is_file()] == [other]
    assert call("--clear").stdout == "0.0 MB freed\n"


def test_turned_off_cache_is_left_alone(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(user_cache.VARIABLE, "Off")
    assert call().stdout == "caching is turned off (SDEXPORT_CACHE)\n"
    assert json.loads(call("--json").stdout)["folder"] is None
    assert call("--clear").exit_code == 0
    assert len(list(filled.rglob("*.blob"))) == 2


@pytest.mark.skipif(os.name != "posix", reason="other permissions than POSIX")
@pytest.mark.parametrize("place", ["", "openvino", "hashes"])
@pytest.mark.parametrize("kind", ["link", "shared", "other user"])
def test_folder_that_is_not_trusted_is_named_and_not_cleared(
    filled: Path, place: str, kind: str
) -> None:
    folder = filled / place if place else filled
    if kind == "link":
        folder.rename(folder.with_name("moved"))
        folder.symlink_to(folder.with_name("moved"))
        says = f"{folder} is a link"
    elif kind == "shared":
        folder.chmod(0o777)
        says = f"other users may write to {folder}"
    else:
        given_away(folder)
        says = f"{folder} belongs to another user"
    assert call().stdout.splitlines() == [str(filled), f"  not used: {says}"]
    result = call("--clear")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"the cache is not cleared: {says}" in result.stderr
    assert len(list((filled.parent).rglob("*.blob"))) == 2


@pytest.mark.parametrize("value", ["many", "-1", "nan", "inf", "1e400"])
def test_limit_that_is_no_number_is_one_line(
    cache: Path, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(graph_cache.LIMIT_VARIABLE, value)
    assert json.loads(call("--json").stdout)["limit"] == 24_000_000_000
    (record,) = caplog.records
    assert record.getMessage() == f"SDEXPORT_CACHE_GB is '{value}', no number; 24 is used"
