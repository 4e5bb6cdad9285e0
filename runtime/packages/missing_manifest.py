"""Telling a package that has lost its manifest from a folder that Optimum exported.

Otherwise deleting sdexport.json would turn every check off.
"""

from __future__ import annotations

import os
from pathlib import Path

from sdexport.engines.errors import PackageError
from sdexport.runtime.models.components import FURTHER_GRAPHS
from sdexport.runtime.models.families import components
from sdexport.runtime.packages.graph_surveys import GraphSurveys
from sdexport.runtime.packages.listed_files import REFERENCE
from sdexport.runtime.packages.manifest import MANIFEST

_OURS = "sdexport"
"""The metadata entry in which every exported graph says the version, and what file names of the
exporter begin with."""


def check_never_had_one(folder: Path, surveys: GraphSurveys) -> None:
    """Check a folder without manifest.

    Raises: PackageError: it was exported by sdexport, so it had a manifest.
    """
    sign = _sign(folder, surveys)
    if sign:
        raise PackageError(
            f"{folder}: {MANIFEST} is missing, but {sign}: a package without its manifest cannot "
            "be checked; copy it again as a whole, or run 'sdexport export'"
        )


def _sign(folder: Path, surveys: GraphSurveys) -> str | None:
    """What shows that sdexport exported a folder, in words."""
    for entry in sorted(path.name for path in folder.iterdir()):
        name = entry.casefold()
        if name == REFERENCE:
            return f"there is {entry}/"
        if name.startswith(f"{_OURS}."):
            return f"there is {entry!a}"
    for name in components():
        for graph in FURTHER_GRAPHS:
            if os.path.lexists(folder / name / f"{graph}.onnx"):
                return f"there is {name}/{graph}.onnx"
        if surveys.path(name).is_file() and _OURS in surveys.of(name).metadata:
            return f"{name}/model.onnx was exported by sdexport"
    return None
