"""Our reader of ONNX files: external data, tensor specs, digest, and the survey of a graph."""

from __future__ import annotations

from pathlib import Path

from sdexport.engines.errors import EngineError, PackageError
from sdexport.engines.onnx_file.graph_digest import graph_digest
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.onnx_file.graph_survey import survey
from sdexport.runtime.packages.graph_surveys import GraphSurveys
from sdexport.runtime.packages.trust import SIGNED, Trust
from tests.fuzz import mutators
from tests.fuzz.harness import Target


def check(path: Path) -> None:
    Trust(None, SIGNED).check_graphs(GraphSurveys(path.parents[1]), ["unet"])


def run(folder: Path, data: bytes) -> None:
    path = folder / "unet" / "model.onnx"
    errors: list[Exception] = []
    for read in (survey, graph_specs, graph_digest, check):
        try:
            read(path)
        except (ValueError, EngineError, PackageError) as error:  # documented
            errors.append(error)
    if errors:
        raise errors[-1]


def write(folder: Path, data: bytes) -> None:
    (folder / "unet").mkdir(exist_ok=True)
    (folder / "unet" / "model.onnx").write_bytes(data)


TARGET = Target(
    "onnx_file",
    run,
    names=("unet", "model.onnx"),
    write=write,
    mutate=mutators.protobuf,
    errors=(EngineError, PackageError, ValueError),
)
