"""Every use of TensorRT's bindings exists in the installed ones, with these arguments.

The uses are read from the source, and compared with those that sessions on the stand-in make.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdexport.engines import open_session, trt
from tests.helpers.binding_calls import READ, SET, Use, uses
from tests.helpers.binding_signatures import Member, Parameter, Signature, Surface, surface
from tests.helpers.fake_cuda import real as real_cuda
from tests.helpers.fake_tensorrt import (
    PROFILE,
    RTX_ONLY,
    current_world,
    install,
    write_plan,
)
from tests.helpers.unet_sessions import feeds

ROOTS = {
    "build_options.py": {},
    "build_worker.py": {
        "trt": "",
        "builder": "Builder",
        "network": "INetworkDefinition",
        "config": "IBuilderConfig",
    },
    "engine_build.py": {},
    "engine_layers.py": {},
    "execution_context.py": {"own": "IExecutionContext", "context.own": "IExecutionContext"}
    | {"self.own": "IExecutionContext"},
    "library.py": {},
    "library_calls.py": {"trt": "", "severity": "Severity"},
    "network_attention.py": {
        "trt": "",
        "network": "INetworkDefinition",
        "layer": "IAttentionInputLayer",
        "layer.attention": "IAttention",
        "softmax": "ILayer",
        "tensor": "ITensor",
    },
    "plan.py": {
        "trt": "",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "refitter": "Refitter",
        "parser": "OnnxParserRefitter",
    },
    "runtime_cache.py": {"config": "IRuntimeConfig", "self._cache": "IRuntimeCache"},
    "scratch_memory.py": {},
    "supported_gpus.py": {"trt": ""},
    "tensorrt_session.py": {
        "trt": "",
        "self._trt": "",
        "self._engine": "ICudaEngine",
        "engine": "ICudaEngine",
        "config": "IRuntimeConfig",
    },
    "unsupported_nodes.py": {
        "trt": "",
        "builder": "Builder",
        "parser": "OnnxParser",
        "each": "ParserError",
    },
    "weight_streaming.py": {"engine": "ICudaEngine"},
}
"""By file: the names in it that stand for objects of the library."""
FOLDER = Path(next(iter(trt.__path__)))
RTX_MEMBERS = {
    *(("IRuntimeConfig", name) for name in ("cuda_graph_strategy", "create_runtime_cache")),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    *(("IRuntimeConfig", "set_runtime_cache"), ("ICudaEngine", "create_runtime_config")),
    *(("IBuilderConfig", name) for name in ("num_compute_capabilities", "set_compute_capability")),
}
"""Only TensorRT-RTX has these, and only its sessions and builds use them."""
STUBS = """
int createInferBuilder_INTERNAL(void) { return 0; }
int createInferRefitter_INTERNAL(void) { return 0; }
int createInferRuntime_INTERNAL(void) { return 0; }
int createNvOnnxParserRefitter_INTERNAL(void) { return 0; }
int createNvOnnxParser_INTERNAL(void) { return 0; }
int getBuilderPluginRegistry(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
int getPluginRegistry(void) { return 0; }
int initLibNvInferPlugins(void) { return 0; }
"""
"""The functions that TensorRT's bindings import from its library, which is on no registry."""
DUMP = """
import dataclasses, json, tensorrt_bindings
from tests.helpers.binding_signatures import surface
found = surface(tensorrt_bindings)
print(json.dumps({c: {n: dataclasses.asdict(m) for n, m in ms.items()} for c, ms in found.items()}))
"""


def all_uses() -> list[Use]:
    found = [use for name, roots in ROOTS.items() for use in uses(FOLDER / name, roots)]
    known = ("__members__", "__class__", "__version__", "__init__")
    return [use for use in found if use.name not in known]


def check(found: Surface, wanted: list[Use]) -> str:
    """Compare; returns the counts, for the test's output."""
    problems = [problem for use in wanted if (problem := use.problem(found))]
    assert problems == []
    methods = {use.what for use in wanted if use.arguments >= 0}
    rest = {use.what for use in wanted if use.arguments < 0}
    signatures = sum(len(found[owner][name].signatures) for owner, name, _ in methods)
    return (
        f"{len(methods)} methods and constructors with {signatures} signatures, and {len(rest)} "
        "properties, classes and constants exist with these arguments"
    )


def test_every_file_is_read() -> None:
    assert {path.name for path in FOLDER.glob("*.py")} - {"__init__.py"} == set(ROOTS)


def test_uses_exist_in_tensorrt_rtx(capsys: pytest.CaptureFixture[str]) -> None:
    module = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    counts = check(surface(module), all_uses())
    with capsys.disabled():
        sys.stdout.write(f"\ntensorrt_rtx {module.__version__}: {counts}\n")


@pytest.mark.parametrize(
    ("use", "problem"),
    [
        (("IExecutionContext", "set_input_shape", 3), "takes not 3 arguments"),
        (("IExecutionContext", "execute_async_v2", 1), "no such member"),
        (("ICudaEngine", "num_io_tensors", SET), "cannot be set"),
        (("ICudaEngine", "num_io_tensors", 0), "cannot be called"),
        (("ICudaEngine", "get_tensor_name", READ), "is a method"),
        (("ComputeCapability", "SM90", READ), "no such member"),
        (("", "Runtime", 2), "takes not 2 arguments"),
    ],
)
def test_uses_that_do_not_exist_are_found(use: tuple[str, str, int], problem: str) -> None:
    module = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    assert problem in Use(*use, "plan.py", 1).problem(surface(module))


def test_uses_exist_in_tensorrt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its bindings are read over a library of empty functions."""
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux, for a library of empty functions")
    major = importlib.metadata.version("tensorrt-cu13-bindings").split(".")[0]
    (tmp_path / "empty.c").write_text(STUBS)
    for name in ("nvonnxparser", "nvinfer_plugin", "nvinfer"):
        library = f"lib{name}.so.{major}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", library, "empty.c"]
        subprocess.run(command, cwd=tmp_path, check=True)
    paths = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", DUMP],
        env=os.environ | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {
        owner: {name: _member(values) for name, values in members.items()}
        for owner, members in json.loads(done.stdout).items()
    }
    wanted = [use for use in all_uses() if not _is_of_rtx(use)]
    with capsys.disabled():
        sys.stdout.write(f"\ntensorrt {major}: {check(found, wanted)}\n")


def _member(values: dict[str, object]) -> Member:
    signatures = [
        Signature(tuple(Parameter(**p) for p in s["parameters"]), s["returns"])
        for s in values["signatures"]  # type: ignore[attr-defined]
    ]
    return Member(str(values["kind"]), tuple(signatures), bool(values["writable"]))


def _is_of_rtx(use: Use) -> bool:
    return (use.owner, use.name) in RTX_MEMBERS or use.owner in RTX_ONLY or use.name in RTX_ONLY


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_calls_of_sessions_are_among_the_uses(
    monkeypatch: pytest.MonkeyPatch, package: Path, tmp_path: Path, backend: str
) -> None:
    """So no call escapes the reading of the source; and each goes through cuda-bindings."""
    gpu, model = install(monkeypatch), package / "unet" / "model.onnx"
    options = {"weight_stripped": True, "weight_streaming": True}
    profiles = (PROFILE, PROFILE | {"batch": PROFILE["batch"].scaled(2)})
    plan = write_plan(model, tmp_path / "unet.plan", backend, options=options, profiles=profiles)
    with open_session(model, backend, plan=plan) as session:
        for _ in range(3):
            session.run(feeds())
    wanted = {use.what for use in all_uses()}
    made = current_world().calls
    called = {_what(name, count) for name, count in made if name != "ILogger"}  # by its subclass
    assert called - wanted == set()
    assert len(called) > 12
    if real_cuda is not None:
        assert set(gpu.checked) == set(gpu.counts) and len(gpu.checked) > 10


def _what(called: str, count: int) -> tuple[str, str, int]:
    owner, _, name = called.partition(".")
    if not name:
        return "", owner, count
    properties = ("_strategy", "budget_v2")
    is_set = name.endswith(properties) and not name.startswith("set_")
    return owner, name, SET if is_set else count
