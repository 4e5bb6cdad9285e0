"""Prepares a release: version, changelog, demo package, commit and tag. It pushes nothing.

    python scripts/release.py 0.2.0

The working tree must be clean. Everything in CHANGELOG.md under "Unreleased" moves to the new
version. If a step fails, the files are as they were and there is no commit and no tag.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSION_FILE = Path("runtime/version.py")
CHANGELOG = Path("CHANGELOG.md")
DEMO_PACKAGE = Path("sdexport/demo_model/package")  # its files name the version
UNRELEASED = "## [Unreleased]\n"
VERSION_LINE = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:(\.dev|rc)(\d+))?")


class ReleaseError(Exception):
    """A release cannot be made; the message says why."""


def release(root: Path, version: str, date: datetime.date) -> str:
    """Write the version and the changelog, commit and tag.

    Args:
      root: top folder of a clean checkout.
      version: `1.2.3` or `1.2.3rc1`, later than the current one.
      date: day of the release, for the changelog.

    Returns: name of the tag.
    Raises: ReleaseError: the tree is not clean, or version, tag or changelog do not fit.
    """
    tag = f"v{version}"
    if git(root, "status", "--porcelain"):
        raise ReleaseError("the working tree is not clean; commit or stash first")
    if git(root, "tag", "--list", tag):
        raise ReleaseError(f"the tag {tag} exists")
    source = (root / VERSION_FILE).read_text(encoding="utf-8")
    text = with_version(source, version)
    changelog = with_release(
        (root / CHANGELOG).read_text(encoding="utf-8"), version, date.isoformat()
    )
    try:
        (root / VERSION_FILE).write_text(text, encoding="utf-8")
        (root / CHANGELOG).write_text(changelog, encoding="utf-8")
        if (root / DEMO_PACKAGE).is_dir():
            subprocess.run(["make", "demo-package"], cwd=root, check=True)
        git(root, "add", "--all")
        git(root, "commit", "--quiet", "--message", f"Release {version}")
    except BaseException:
        git(root, "reset", "--quiet", "--hard")
        git(root, "clean", "--quiet", "--force", "-d", DEMO_PACKAGE.as_posix())
        raise
    git(root, "tag", "--annotate", tag, "--message", f"sdexport {version}")
    return tag


def with_version(source: str, version: str) -> str:
    """The text of version.py with another, later version."""
    current = VERSION_LINE.search(source)
    if current is None:
        raise ReleaseError(f"{VERSION_FILE} has no line __version__ = ...")
    if VERSION.fullmatch(version) is None or ".dev" in version:
        raise ReleaseError(f"{version!r} is no version to release; write 1.2.3 or 1.2.3rc1")
    if _order(version) <= _order(current[1]):
        raise ReleaseError(f"{version} is not later than the current version, {current[1]}")
    return VERSION_LINE.sub(f'__version__ = "{version}"', source)


def with_release(changelog: str, version: str, date: str) -> str:
    """The changelog with its unreleased section under the version, and an empty one above."""
    start = changelog.find(UNRELEASED)
    if start < 0:
        raise ReleaseError(f"{CHANGELOG} has no section {UNRELEASED.strip()!r}")
    start += len(UNRELEASED)
    end = changelog.find("\n## ", start)
    if not changelog[start : None if end < 0 else end].strip():
        raise ReleaseError(f"{CHANGELOG} says nothing about this release under Unreleased")
    return f"{changelog[:start]}\n## [{version}] - {date}\n{changelog[start:]}"


def git(root: Path, *arguments: str) -> str:
    """Run git in a folder and return its output."""
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"git {arguments[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def _order(version: str) -> tuple[int, ...]:
    """Sort key: 1.2.3.dev0, then 1.2.3rc1, then 1.2.3."""
    match = VERSION.fullmatch(version)
    if match is None:
        raise ReleaseError(f"cannot read the version {version!r}")
    stage = (".dev", "rc", None).index(match[4])
    return (*map(int, match.group(1, 2, 3)), stage, int(match[5] or 0))


def main() -> int:
    parser = argparse.ArgumentParser(description="Prepare a release; pushes nothing.")
    parser.add_argument("version", help="for example 0.2.0")
    version = parser.parse_args().version
    try:
        tag = release(ROOT, version, datetime.datetime.now(datetime.UTC).date())
    except (ReleaseError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Committed and tagged {tag}. To publish it: git push origin HEAD {tag}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
