"""scripts/release.py, on a repository made for the test."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import release as script
from scripts.release import ReleaseError, git, release, with_release, with_version

DATE = datetime.date(2027, 1, 31)
VERSION_PY = '"""The version."""\n\n__version__ = "0.2.0.dev0"\n'
CHANGELOG = """# Changelog

## [Unreleased]

### Added
- A thing.

## [0.1.0] - 2026-11-26

### Added
- Everything else.
"""
RELEASED = CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n## [0.2.0] - 2027-01-31\n")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which("git") is None:
        pytest.skip("no git")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "checkout"
    (root / "runtime").mkdir(parents=True)
    (root / "scripts").mkdir()
    (root / "runtime" / "version.py").write_text(VERSION_PY)
    (root / "CHANGELOG.md").write_text(CHANGELOG)
    shutil.copy(script.__file__, root / "scripts" / "release.py")
    git(root, "init", "--quiet")
    for name, value in {"user.name": "a", "user.email": "a@b.c", "commit.gpgsign": "false"}.items():
        git(root, "config", name, value)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "Begin")
    return root


def test_release_commits_and_tags(checkout: Path) -> None:
    assert release(checkout, "0.2.0", DATE) == "v0.2.0"
    assert '__version__ = "0.2.0"\n' in (checkout / "runtime" / "version.py").read_text()
    assert (checkout / "CHANGELOG.md").read_text() == RELEASED
    assert git(checkout, "status", "--porcelain") == ""
    assert git(checkout, "log", "-1", "--format=%s %D").startswith("Release 0.2.0 HEAD -> ")
    assert git(checkout, "rev-parse", "v0.2.0^{commit}") == git(checkout, "rev-parse", "HEAD")
    changed = git(checkout, "show", "--stat=80", "--format=", "--name-only", "HEAD").split()
    assert changed == ["CHANGELOG.md", "runtime/version.py"]


def test_release_needs_a_clean_tree(checkout: Path) -> None:
    (checkout / "new.txt").write_text("")
    with pytest.raises(ReleaseError, match="not clean"):
        release(checkout, "0.2.0", DATE)


def test_release_needs_a_new_tag(checkout: Path) -> None:
    git(checkout, "tag", "v0.2.0")
    with pytest.raises(ReleaseError, match=r"v0\.2\.0 exists"):
        release(checkout, "0.2.0", DATE)


def test_release_that_fails_changes_nothing(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setattr(script, "DEMO_PACKAGE", Path("runtime"))  # there is no Makefile
    with pytest.raises((OSError, subprocess.CalledProcessError)):
        release(checkout, "0.2.0", DATE)
    assert git(checkout, "rev-parse", "HEAD") == before
    assert git(checkout, "status", "--porcelain") == "" == git(checkout, "tag")
    assert (checkout / "runtime" / "version.py").read_text() == VERSION_PY


def test_release_script_ends_with_one_line(checkout: Path) -> None:
    command = [sys.executable, "scripts/release.py"]
    failed = subprocess.run([*command, "0.1.0"], cwd=checkout, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr == ("error: 0.1.0 is not later than the current version, 0.2.0.dev0\n")
    done = subprocess.run([*command, "0.2.0"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0 and "git push origin HEAD v0.2.0" in done.stdout


@pytest.mark.parametrize("version", ["", "1", "v0.2.0", "0.2.0.dev1", "0.2.0\n", "0.3-beta"])
def test_version_must_be_one_to_release(version: str) -> None:
    with pytest.raises(ReleaseError, match="no version to release"):
        with_version(VERSION_PY, version)


@pytest.mark.parametrize(
    ("current", "later"),
    [("0.2.0.dev0", "0.2.0rc1"), ("0.2.0rc1", "0.2.0rc2"), ("0.2.0rc2", "0.2.0"),
     ("0.2.0", "0.2.1"), ("0.9.0", "0.10.0")],
)  # fmt: skip
def test_version_must_be_later(current: str, later: str) -> None:
    assert later in with_version(VERSION_PY.replace("0.2.0.dev0", current), later)
    with pytest.raises(ReleaseError, match=r"not later|no version to release"):
        with_version(VERSION_PY.replace("0.2.0.dev0", later), current)


def test_changelog_needs_an_unreleased_section() -> None:
    with pytest.raises(ReleaseError, match="has no section"):
        with_release("# Changelog\n", "0.2.0", "2027-01-31")
    with pytest.raises(ReleaseError, match="says nothing"):
        with_release(RELEASED, "0.3.0", "2027-01-31")
