"""A TensorRT plan and its sidecar, opened with a stand-in for the library."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from sdexport.engines.backends import open_session
from sdexport.engines.cache.sidecar import StoredFile, model_digest, sidecar_path
from sdexport.engines.errors import EngineError, InvalidArgumentError
from sdexport.engines.trt import tensorrt_session
from tests.fuzz import mutators
from tests.fuzz.harness import Target
from tests.fuzz.targets.prepared_graph import agreeing
from tests.helpers import fake_tensorrt

assert tensorrt_session  # imported now: the library is found only where it is replaced
MODEL, PLAN, SIDECAR = "unet.onnx", "unet.plan", "unet.json"
KNOWN = {PLAN: b"plan", SIDECAR: b"{}", "unet.cache": b"kernels"}


@functools.cache
def model() -> bytes:
    """A graph with the inputs and outputs of the stand-in's engine."""
    space = ["batch", 4, "height", "width"]
    inputs = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, space),
        helper.make_tensor_value_info("timestep", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info(
            "encoder_hidden_states", TensorProto.FLOAT, ["batch", "sequence", 8]
        ),
    ]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["sample"], ["out_sample"])],
        "unet",
        inputs,
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, space)],
    )
    content: bytes = helper.make_model(graph).SerializeToString()
    return content


@functools.cache
def sidecar(folder: Path) -> dict[str, object]:
    """The sidecar that fits the plan without change."""
    fake_tensorrt.write_plan(folder / MODEL, folder / PLAN, "tensorrt")
    values: dict[str, object] = json.loads(sidecar_path(folder / PLAN).read_bytes())
    return values


def write(folder: Path, data: bytes) -> None:
    (folder / MODEL).write_bytes(model())
    fitting = dict(sidecar(folder))
    found = KNOWN | {k: v for k, v in mutators.split(data).items() if k in KNOWN}
    own = found.pop(SIDECAR)
    for name, content in found.items():
        (folder / name).write_bytes(content)
    fitting |= {"files": {PLAN: vars(StoredFile.of(folder / PLAN))}}
    (folder / SIDECAR).write_bytes(agreeing(fitting, mutators.parsed(own), own))


def run(folder: Path, data: bytes) -> None:
    feeds = {
        "sample": np.ones((1, 4, 8, 8), np.float32),
        "timestep": np.ones(1, np.float32),
        "encoder_hidden_states": np.ones((1, 77, 8), np.float32),
    }
    with pytest.MonkeyPatch.context() as patch:
        fake_tensorrt.install(patch)
        digest = model_digest(folder / MODEL)
        options = {"plan": folder / PLAN, "digest": digest, "package": ""}
        with open_session(folder / MODEL, "tensorrt", **options) as session:
            if {spec.name for spec in session.inputs} == set(feeds):
                session.run(feeds)


WORDS = (
    *("target", "profiles", "options", "inputs", "outputs", "size", "sha256", "files"),
    *("compute_capabilities", "gpu", "compute_capability", "weight_stripped", "weight_streaming"),
    *("refittable", "version_compatible", "portable", "8.9", "batch", "height", "width", "1:2:8"),
    *({"options": {"weight_stripped": True}}, {"options": {"refittable": True}}, "onnx_sha256"),
    *({"target": {"gpu": "Fake", "compute_capability": "8.9"}}, "library_version", "backend"),
)
TARGET = Target(
    "plan",
    run,
    names=("unet",),
    write=write,
    mutate=mutators.files(KNOWN, {".json": mutators.json_text(WORDS)}),
    errors=(EngineError, InvalidArgumentError, FileNotFoundError),
)
