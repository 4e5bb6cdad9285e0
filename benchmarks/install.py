"""Disk space of an installation, compared with other libraries.

    python -m benchmarks.install --work DIR [--results DIR]

Each is installed into its own environment; the size of an empty one is subtracted.
"""

from __future__ import annotations

import argparse
import subprocess
import venv
from pathlib import Path
from typing import Any

from benchmarks import arguments
from benchmarks.contenders import CONTENDERS, OURS, ROOT, python_of
from sdexport.bench.measure import machine
from sdexport.engines.errors import WorkerError


def megabytes(folder: Path) -> float:
    """Total size of the files in a folder; links are not followed."""
    found = (f for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    return round(sum(f.stat().st_size for f in found) / 1e6, 1)


def new_environment(folder: Path, extra: str | None) -> float:
    """Create an environment with this project, or an empty one without `extra`; return its MB."""
    venv.create(folder, clear=True, with_pip=True)
    if extra is not None:
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
        pip += ["--disable-pip-version-check", "--constraint", ROOT / "constraints.txt"]
        subprocess.run([*map(str, pip), f"{ROOT}[{extra}]"], check=True, capture_output=True)
    return megabytes(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.install")
    arguments.common(parser)
    args = parser.parse_args()
    folder = args.work.resolve() / "venvs"
    bare = new_environment(folder / "bare", None)
    found: dict[str, Any] = {}
    for extra in ("cpu", "openvino"):
        found[f"sdexport[{extra}]"] = round(
            new_environment(folder / f"sdexport-{extra}", extra) - bare, 1
        )
    for library in dict.fromkeys(c.library for c in CONTENDERS.values() if c.library != OURS):
        try:
            python = python_of(library, args.work.resolve())
            found[library] = round(megabytes(python.parents[1].resolve()) - bare, 1)
        except WorkerError as error:
            found[library] = {"error": str(error)}
    report = {"machine": machine(), "bare_mb": bare, "over_bare_mb": found}
    arguments.save(report, "install", args)


if __name__ == "__main__":
    main()
