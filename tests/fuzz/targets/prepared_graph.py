"""A graph that was prepared for ONNX Runtime: its file, its weights and its sidecar.

Sizes and hashes in the sidecar agree with the files, unless the input has a sidecar of its own.
ONNX Runtime opens one in eight of the graphs that can be used; the checks before it see all.
"""

from __future__ import annotations

import functools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sdexport.engines.cache.engine_files import checked_files
from sdexport.engines.cache.processor import kernel_target
from sdexport.engines.cache.sidecar import Sidecar, StoredFile, with_own_digest
from sdexport.engines.cache.staleness import stale_reasons
from sdexport.engines.errors import EngineError, InvalidArgumentError
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.ort.prepared import prepared_graph
from sdexport.engines.ort.prepared.prepared_session import open_prepared
from sdexport.engines.session import Session
from sdexport.engines.telemetry import import_onnxruntime
from sdexport.runtime.packages.trust import check_engine
from tests.fuzz import mutators
from tests.fuzz.harness import Target

_VERSION = import_onnxruntime().__version__
_OPENED = 8
PLAN, DATA, SIDECAR = "unet.onnx", "unet.onnx_data", "unet.json"


@functools.cache
def base() -> dict[str, bytes]:
    """A graph with external weights, and its data."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    data = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA), ("offset", "0"), ("length", str(len(data)))):
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["sample", "w"], ["out_sample"])],
        "unet",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, ["batch", 4])],
        [weight],
    )
    opset = [helper.make_opsetid("", 17)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return {PLAN: model.SerializeToString(), DATA: data, SIDECAR: b"{}"}


def write(folder: Path, data: bytes) -> None:
    files = base() | {k: v for k, v in mutators.split(data).items() if k in base()}
    own = files.pop(SIDECAR)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "original.onnx").write_bytes(base()[PLAN])
    inputs, outputs = graph_specs(folder / "original.onnx")
    values = json.loads(
        Sidecar(
            component="unet",
            backend=prepared_graph.BACKEND,
            library_version=_VERSION,
            onnx_sha256="0" * 64,
            graph_sha256="0" * 64,
            target=kernel_target(),
            profiles=(),
            options={
                prepared_graph.PASSES: prepared_graph.REWRITES_VERSION,
                prepared_graph.MULTIPLES: {},
            },
            inputs=inputs,
            outputs=outputs,
            files={name: StoredFile.of(folder / name) for name in (PLAN, DATA)},
        ).to_json()
    )
    changes = mutators.parsed(own)
    (folder / SIDECAR).write_bytes(agreeing(values, changes, own))


def agreeing(values: dict[str, Any], changes: Any, own: bytes) -> bytes:
    """A sidecar's content with changes, whose own digest agrees; else `own`."""
    if not isinstance(changes, dict):
        return own
    fields = {k: v for k, v in (values | changes).items() if k != "sidecar_sha256"}
    try:
        return with_own_digest(fields).encode()
    except (TypeError, ValueError, RecursionError):  # what has no digest
        return own


def run(folder: Path, data: bytes) -> None:
    plan = folder / PLAN
    errors = []
    try:
        check_engine(plan)
    except EngineError as error:
        errors.append(error)
    if zlib.crc32(data) % _OPENED:
        sidecar = Sidecar.read(plan)
        required = prepared_graph.requirements(digest="0" * 64, package="", version=_VERSION)
        stale_reasons(sidecar, required)
        checked_files(plan, sidecar)
        prepared_graph.multiples(sidecar)
    else:
        _run_opened(plan)
    if errors:
        raise errors[0]


def _run_opened(plan: Path) -> None:
    session = open_prepared(plan, original=_no_original, digest="0" * 64, package="", threads=1)
    with session:
        known = [(spec.name, spec.dtype) for spec in session.inputs]
        if known == [("sample", "float32")]:
            session.run({"sample": np.ones((2, 4), np.float32)})


def _no_original(**_: object) -> Session:
    raise EngineError("unet: there is no original graph")


WORDS = (
    *("target", "profiles", "options", "inputs", "outputs", "package_sha256", "files", "size"),
    *("multiples", "component", {"multiples": {"sample": 8}}, "name", "dtype", "shape", "float32"),
    *({"options": {}}, {"files": {}}, {"files": {"unet.onnx": {"size": 1, "sha256": ""}}}),
)
TARGET = Target(
    "prepared_graph",
    run,
    names=("unet",),
    write=write,
    mutate=mutators.files(base(), {".onnx": mutators.protobuf, ".json": mutators.json_text(WORDS)}),
    errors=(EngineError, InvalidArgumentError, FileNotFoundError),
)
