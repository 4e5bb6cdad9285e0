"""The sidecar of a built engine, compared with what is wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdexport.engines.cache.sidecar import Sidecar
from sdexport.engines.cache.staleness import key_differences, stale_reasons
from sdexport.engines.errors import EngineError
from sdexport.engines.ort.prepared import prepared_graph
from sdexport.engines.printable_text import escaped
from tests.fuzz import mutators
from tests.fuzz.harness import Target
from tests.fuzz.targets.prepared_graph import agreeing

PLAN = "unet.plan"


def prepare(folder: Path) -> None:
    (folder / PLAN).write_bytes(b"abc")
    (folder / f"{PLAN}_data").write_bytes(b"0123")


def write(folder: Path, data: bytes) -> None:
    value = mutators.parsed(data)
    (folder / "unet.json").write_bytes(agreeing({}, value, data))


def run(folder: Path, data: bytes) -> None:
    sidecar = Sidecar.read(folder / PLAN)
    wanted = replace(sidecar, onnx_sha256="0" * 64, options={"refittable": True}, profiles=())
    required = prepared_graph.requirements(digest="0" * 64, package="1" * 64, version="1.0")
    for reason in (*key_differences(sidecar, wanted), *stale_reasons(sidecar, required)):
        assert escaped(reason) == reason, reason
    assert isinstance(sidecar.size, int)
    prepared_graph.multiples(sidecar)
    sidecar.to_json()


WORDS = (
    *("component", "backend", "library_version", "onnx_sha256", "graph_sha256", "package_sha256"),
    *(
        "target",
        "profiles",
        "options",
        "inputs",
        "outputs",
        "size",
        "sha256",
        "files",
        "format_version",
    ),
    *(
        "multiples",
        "passes",
        "refittable",
        "version_compatible",
        "unet.plan_data",
        "1:2:8",
        "shape",
    ),
    *({"sample": 8}, {"batch": "1:2:8"}, "sample", {"unet.plan_data": 4}, 3, "name", "dtype"),
)
TARGET = Target(
    "sidecar",
    run,
    names=("unet", "multiples"),
    prepare=prepare,
    write=write,
    mutate=mutators.json_text(WORDS),
    errors=(EngineError, FileNotFoundError),
)
