"""The user's cache folder: its place, its permissions, and what it must not be."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sdexport.engines.cache import user_cache as module
from sdexport.engines.cache.user_cache import VARIABLE, folder_problem, user_cache, user_cache_path

POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="other permissions than POSIX")


@pytest.fixture(autouse=True)
def fresh_warnings() -> None:
    module._warn_once.cache_clear()


def test_place_follows_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # must be absolute to count
    assert user_cache_path() == tmp_path / ".cache" / "sdexport"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache_path() == tmp_path / "xdg" / "sdexport"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert user_cache_path() == tmp_path / "Library" / "Caches" / "sdexport"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert user_cache_path() == tmp_path / "local" / "sdexport"
    monkeypatch.setenv(VARIABLE, str(tmp_path / "own"))
    assert user_cache_path() == tmp_path / "own"
    monkeypatch.setenv(VARIABLE, "OFF")
    assert user_cache_path() is None
    assert user_cache("openvino") is None


@POSIX_ONLY
def test_folder_is_created_for_this_user_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "a" / "b"))
    folder = user_cache("openvino")
    assert folder == tmp_path / "a" / "b" / "openvino"
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]
    assert user_cache("openvino") == folder


@POSIX_ONLY
@pytest.mark.parametrize("kind", ["link", "file", "shared", "owner", "long", "below a file", "nul"])
def test_unusable_folder_is_named_once(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, says = tmp_path / "cache", ""
    if kind == "link":
        (tmp_path / "target").mkdir()
        place.symlink_to(tmp_path / "target")
        says = "is a link"
    elif kind == "file":
        place.write_text("")
        says = "File exists"
    elif kind == "shared":
        place.mkdir()
        place.chmod(0o777)
        says = f"other users may write to {place}"
    elif kind == "owner":
        place.mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: 12345678)
        says = "belongs to another user"
    elif kind == "long":
        place = tmp_path / ("x" * 300)
        says = "name too long"
    elif kind == "below a file":
        (tmp_path / "file").write_text("")
        place = tmp_path / "file" / "cache"
        says = "cannot be used"
    else:
        monkeypatch.setattr(module, "user_cache_path", lambda: Path("/tmp/a\0b"))
        says = "cannot be used"
    monkeypatch.setenv(VARIABLE, str(place))
    assert user_cache("openvino") is None
    assert user_cache("openvino") is None
    (record,) = caplog.records
    assert says in record.message and "\n" not in record.message
    assert folder_problem(place) or kind == "nul"
