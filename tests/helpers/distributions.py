"""Builds sdexport's wheel and sdist from a copy of the sources and installs them, offline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINKS = {"sdexport/runtime": "../runtime", "sdexport/engines": "../engines"}
FOLDERS = ("sdexport", "runtime", "engines")


def run(*command: object, cwd: Path | str = "/", **environment: str) -> str:
    """Run a command that must succeed and return what it wrote to stdout."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=without_checkout() | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_checkout() -> dict[str, str]:
    """The environment variables, less the one that would put this checkout on the path."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def copy_sources(folder: Path, *, links: bool = True) -> Path:
    """Copy what a build needs; without links, as Git checks them out where it cannot make any."""
    names = [path.name for path in ROOT.iterdir() if path.is_file() and path.name[0] != "."]
    for name in names:
        shutil.copy2(ROOT / name, _made(folder) / name)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for link, target in LINKS.items():
        if not links:
            (folder / link).unlink()
            (folder / link).write_text(target)
    return folder


def build(source: Path, output: Path, kind: str, **environment: str) -> Path:
    """Build a "wheel" or an "sdist" with the setuptools of this environment."""
    code = f"import sys, setuptools.build_meta as m; print(m.build_{kind}(sys.argv[1]))"
    printed = run(sys.executable, "-c", code, _made(output), cwd=source, **environment)
    return output / printed.splitlines()[-1]


class Environment:
    """A virtual environment of its own, which sees this one's other packages."""

    def __init__(self, folder: Path) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
        self.python = Path(paths["scripts"]) / Path(sys.executable).name
        self.command = Path(paths["scripts"]) / "sdexport"
        others = sysconfig.get_paths()["purelib"]
        # A plain path: the .pth files in there, which name this checkout, are not read.
        (Path(paths["purelib"]) / "others.pth").write_text(others + "\n")

    def install(self, *arguments: object) -> Environment:
        """Install with pip, offline, without dependencies."""
        pip = (sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check")
        run(*pip, "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", *arguments)
        return self

    def install_editable(self, source: Path, mode: str) -> Environment:
        """Install a checkout with one of the editable modes of setuptools."""
        return self.install("--config-settings", f"editable_mode={mode}", "--editable", source)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
