"""Backends by component, the choice of auto, and one component in memory at a time."""

from __future__ import annotations

import inspect
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdexport.engines.backends
from benchmarks import low_memory
from sdexport import Package, Pipeline, load_pipeline
from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines import EngineError, Session, choose, cuda_device
from sdexport.engines.backends import _BACKENDS
from sdexport.engines.cache.processor import kernel_target
from sdexport.engines.cache.sidecar import Sidecar, StoredFile, sidecar_path
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.ort.prepared import prepared_graph
from sdexport.engines.ov import compiled_graph
from sdexport.engines.session_options import FILE_OPTIONS, SESSION_OPTIONS
from sdexport.runtime import component_sessions
from sdexport.runtime.component_backends import (
    BackendSpec,
    backend_of,
    check_backends,
    parse_backends,
)
from sdexport.runtime.component_engines import open_component, package_binding
from tests.tolerances import IMAGE_ABS, LOW_MEMORY_MB

COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def test_parse_backends() -> None:
    assert parse_backends([]) == "onnxruntime"
    assert parse_backends(["openvino"]) == "openvino"
    mixed = parse_backends(["openvino", "unet=tensorrt-rtx", "unet=auto"])
    assert [backend_of(mixed, n).name for n in ("unet", "vae_decoder")] == ["auto", "openvino"]
    assert backend_of(parse_backends(["unet=openvino"]), "vae_decoder").name == "onnxruntime"
    mixed = parse_backends(["openvino,threads=2", "unet=openvino,precision=bf16"])
    assert backend_of(mixed, "unet") == BackendSpec("openvino", {"precision": "bf16"})
    assert str(backend_of(mixed, "vae_decoder")) == "openvino,threads=2"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["abacus"], "unknown backend 'abacus'; choose one of onnxruntime, .*auto"),
        (["unet="], "unknown backend ''"),
        (["brain=openvino"], "no component 'brain'; choose one of text_encoder"),
        (["=openvino"], "no component ''"),
        (["openvino,precision"], "backend openvino,precision: expected OPTION=VALUE"),
        (["unet=openvino,"], "expected OPTION=VALUE such as precision=bf16, got ''"),
    ],
)
def test_parse_backends_refuses(values: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_backends(values)


def test_check_backends_knows_the_package() -> None:
    with pytest.raises(ValueError, match="no component 'text_encoder_2' to run on openvino"):
        check_backends({"text_encoder_2": "openvino"}, COMPONENTS)


def test_pipeline_refuses_backends_at_once(package: Path) -> None:
    for backend in ("abacus", {"unet": "abacus"}, {"brain": "openvino"}):
        with pytest.raises(ValueError, match=r"abacus|brain"):
            load_pipeline(package, backend, verify=False)


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        (
            "onnxruntime",
            {"device": "cuda"},
            "onnxruntime takes no option 'device', an option of onnxruntime-cuda, webgpu, "
            "openvino, tensorrt, tensorrt-rtx; it takes providers, threads, optimization, "
            "prepacking, engine",
        ),
        ("onnxruntime", {"thread": 1}, "takes no option 'thread'; did you mean threads"),
        ("onnxruntime", {"low_memmory": True}, "did you mean low_memory"),
        ("onnxruntime", {"plan": "x"}, "takes no option 'plan'; it takes"),
        ("openvino", {"stream": 1}, "did you mean streams"),
        ("tensorrt-rtx", {"threads": 1}, "tensorrt-rtx takes no option 'threads'"),
        ("auto", {"colour": 1}, "take no option 'colour'; they take providers, "),
        ({"unet": "openvino"}, {"cuda_graphs": 1}, "onnxruntime and openvino take no option"),
        ("onnxruntime,precision=bf16", {}, "onnxruntime takes no option 'precision'"),
        ({"unet": "openvino,providers=x"}, {}, "openvino takes no option 'providers'"),
        ("onnxruntime", {"x" * 999: 1}, "takes no option 'x{60}'"),
    ],
)
def test_field_case_n9_unknown_options_are_rejected_at_load(
    package: Path, backend: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        load_pipeline(package, backend, verify=False, **options)
    assert "\n" not in str(caught.value)


def test_options_of_one_of_several_backends_are_accepted(package: Path) -> None:
    backends = {"unet": "openvino", "*": "onnxruntime"}
    load_pipeline(package, backends, verify=False, streams=2, prepacking=False).close()
    load_pipeline(package, "auto", verify=False, cuda_graphs=False, threads=1).close()


@pytest.mark.parametrize("backend", SESSION_OPTIONS)
def test_table_of_options_is_that_of_the_sessions(backend: str) -> None:
    entry = _BACKENDS[backend]
    module = pytest.importorskip(entry.module)
    names = list(inspect.signature(getattr(module, entry.function)).parameters)[1:]
    if backend.startswith("tensorrt"):
        names = [name for name in names if name != "backend"]
    assert [name for name in names if name not in FILE_OPTIONS] == list(SESSION_OPTIONS[backend])


def test_docs_have_the_same_table_of_options() -> None:
    page = Path(__file__).parents[2] / "docs" / "backends.md"
    rows = [row.split("|") for row in page.read_text(encoding="utf-8").splitlines() if "|" in row]
    found = {}
    for row in rows[2:7]:
        names = re.findall("`([a-z_]+)`", row[3])
        found |= {backend: tuple(names) for backend in re.findall("`([^`]+)`", row[1])}
    for backend, options in SESSION_OPTIONS.items():
        assert found[backend] == options


def test_options_are_checked_without_a_library(package: Path) -> None:
    code = (
        "import sys; from sdexport import load_pipeline\n"
        "try: load_pipeline(sys.argv[1], 'openvino', verify=False, device2=1)\n"
        "except ValueError as error: print(error)\n"
        "print([m for m in ('onnxruntime', 'openvino', 'tensorrt_rtx') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(package)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "did you mean device?" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("image", [False, True])
def test_warm_up_opens_every_session_that_a_call_needs(package: Path, image: bool) -> None:
    with load_pipeline(package, verify=False) as pipe:
        assert pipe.warm_up(64, 72, batch=2, image=image) > 0
        opened = set(pipe._components._opened)
        expected = {"text_encoder", "unet", "vae_decoder"} | ({"vae_encoder"} if image else set())
        assert opened == expected
        with pytest.raises(InvalidArgumentError, match="height must be a multiple of 8"):
            pipe.warm_up(60)


def test_repr_of_a_pipeline_names_package_family_size_and_backend(package: Path) -> None:
    with load_pipeline(package, {"unet": "openvino", "*": "auto"}, verify=False) as pipe:
        assert repr(pipe) == (
            "<Pipeline package: stable-diffusion, 128x128, on unet=openvino, *=auto>"
        )
    with load_pipeline(package, verify=False) as pipe:
        assert repr(pipe).endswith(": stable-diffusion, 128x128, on onnxruntime>")


def test_mixed_backends_generate_the_same_image(package: Path, pipe: Pipeline) -> None:
    pytest.importorskip("openvino")
    arguments: dict[str, Any] = {"num_inference_steps": 3, "seed": 4}
    backends = {"unet": "openvino", "*": "onnxruntime"}
    with load_pipeline(package, backends, verify=False, precision="f32", threads=1) as mixed:
        assert type(mixed.session("unet")).__name__ == "OpenVinoSession"
        assert type(mixed.session("vae_decoder")).__name__ == "OnnxRuntimeSession"
        ours = np.asarray(mixed("a red circle", **arguments).images[0]).astype(int)
    expected = np.asarray(pipe("a red circle", **arguments).images[0]).astype(int)
    assert np.abs(ours - expected).max() <= IMAGE_ABS


def test_low_memory_holds_one_component_and_generates_the_same(
    package: Path, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Session] = []
    most = 0

    def watched(*arguments: Any, **options: Any) -> Session:
        nonlocal most
        session = open_component(*arguments, **options)
        opened.append(session)
        most = max(most, sum(not s._closed for s in opened))  # type: ignore[attr-defined]
        return session

    monkeypatch.setattr(component_sessions, "open_component", watched)
    seen = []
    arguments: dict[str, Any] = {"num_inference_steps": 3, "seed": 5}
    with Pipeline(Package.load(package, verify=False), low_memory=True) as small:
        image = small("a red circle", **arguments).images[0]
        assert (most, len(opened)) == (1, 3)

        def look(step: Any) -> None:
            seen.append(small.decode(step.pred_original_sample))

        again = small("a red circle", on_step=look, **arguments).images[0]
        assert (most, len(seen)) == (1, 3)
    assert image.tobytes() == again.tobytes()
    assert image.tobytes() == pipe("a red circle", **arguments).images[0].tobytes()
    with pytest.raises(EngineError, match="the pipeline is closed"):
        small("a red circle", **arguments)


@pytest.mark.slow
def test_low_memory_takes_what_the_largest_component_takes(package: Path) -> None:
    peaks = low_memory.measure(package, 512)["peaks_mb"]
    largest = max(peaks[name] for name in ("text_encoder", "unet", "vae_decoder"))
    assert peaks[low_memory.LOW] <= largest + LOW_MEMORY_MB
    assert peaks[low_memory.LOW] < peaks[low_memory.WHOLE]


def test_auto_says_what_it_takes(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), load_pipeline(package, "auto", verify=False) as pipe:
        pipe.session("vae_decoder")
    assert f"vae_decoder: auto takes {choose()}" in caplog.messages


def test_generate_says_on_stderr_what_auto_takes(package: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sdexport", "generate", package, "a star", "--json"]
    command += ["-o", tmp_path / "a.png", "--steps", 1, "--size", "64x64", "--backend", "auto"]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    assert f"INFO: unet: auto takes {choose()}\n" in done.stderr
    assert json.loads(done.stdout)


@pytest.mark.parametrize(
    ("installed", "gpu", "plan", "best"),
    [
        ({"onnxruntime"}, False, False, "onnxruntime"),
        ({"onnxruntime", "openvino"}, False, True, "openvino"),
        ({"onnxruntime", "openvino", "cuda", "tensorrt-rtx"}, False, True, "openvino"),
        ({"onnxruntime", "openvino", "cuda"}, True, True, "onnxruntime-cuda"),
        ({"onnxruntime", "cuda", "tensorrt-rtx"}, True, True, "tensorrt-rtx"),
        ({"onnxruntime", "openvino", "tensorrt-rtx"}, True, False, "openvino"),
    ],
)
def test_auto_takes_the_best(
    monkeypatch: pytest.MonkeyPatch,
    package: Path,
    installed: set[str],
    gpu: bool,
    plan: bool,
    best: str,
) -> None:
    monkeypatch.setattr(sdexport.engines.backends, "_installed", lambda name: name in installed)
    monkeypatch.setattr(
        sdexport.engines.backends, "_has_cuda_provider", lambda: "cuda" in installed
    )
    monkeypatch.setattr(cuda_device, "absent", lambda: "" if gpu else "no GPU")
    monkeypatch.setattr(sdexport.engines.backends, "_unusable", lambda name, plan: "")
    path = package / "unet" / "model.onnx"
    assert choose(plan_of=lambda backend: path if plan else None) == best


@pytest.mark.parametrize(
    ("prepared", "images", "best", "says"),
    [
        ((), 1, "openvino", "for 1 image openvino comes first, the fastest of those"),
        ((), None, "openvino", "for many images openvino comes first, the fastest"),
        (
            ("onnxruntime",),
            1,
            "onnxruntime",
            "for 1 image onnxruntime comes first, as its graph is",
        ),
        (("onnxruntime",), 3, "onnxruntime", "for 3 images onnxruntime comes first, as"),
        (("onnxruntime",), 4, "openvino", "for 4 images openvino comes first, the fastest"),
        (("onnxruntime",), None, "openvino", "for many images openvino comes first"),
        (
            ("openvino",),
            1,
            "openvino",
            "for 1 image openvino comes first, as its graph is prepared",
        ),
        (("onnxruntime", "openvino"), 1, "openvino", "for 1 image openvino comes first, as"),
    ],
)
def test_auto_prefers_prepared_graphs_for_few_images(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    prepared: tuple[str, ...],
    images: int | None,
    best: str,
    says: str,
) -> None:
    backends = sdexport.engines.backends
    monkeypatch.setattr(backends, "_installed", lambda name: name in ("openvino", "onnxruntime"))
    monkeypatch.setattr(backends, "_has_cuda_provider", lambda: False)

    def plan_of(backend: str) -> Path | None:
        return Path("graph") if backend in prepared else None

    with caplog.at_level(logging.INFO):
        assert choose(plan_of=plan_of, images=images) == best
    assert f"auto: {says}" in caplog.text


def _prepared(package: Package, folder: Path, backend: str, version: str | None = None) -> Path:
    """The sidecar of a decoder that is said to be prepared here, by a version of the library."""
    name = "vae_decoder"
    if backend == "onnxruntime":
        plan = folder / backend / f"{name}.onnx"
        options = {prepared_graph.PASSES: prepared_graph.REWRITES_VERSION}
    else:
        variant = compiled_graph.Variant("bf16", True, None)
        plan = compiled_graph.plan_path(folder / backend, name, variant)
        options = variant.options()
    plan.parent.mkdir(exist_ok=True)
    plan.write_bytes(b"graph")
    sidecar = Sidecar(
        component=name,
        backend=backend,
        library_version=version or metadata.version(backend),
        onnx_sha256=package.model_digest(name),
        graph_sha256="",
        target=kernel_target(),
        profiles=(),
        options=options,
        inputs=(),
        outputs=(),
        package_sha256=package_binding(package),
        files={plan.name: StoredFile.of(plan)},
    )
    sidecar_path(plan).write_text(sidecar.to_json(), encoding="utf-8")
    return sidecar_path(plan)


@pytest.fixture
def auto_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Package, int, str], str]:
    """What "auto" takes for the decoder, of both backends of the CPU."""
    backends = sdexport.engines.backends
    monkeypatch.setattr(backends, "_installed", lambda name: name in ("openvino", "onnxruntime"))
    monkeypatch.setattr(backends, "_has_cuda_provider", lambda: False)

    def takes(package: Package, images: int, precision: str) -> str:
        further = {"engine_dir": tmp_path, "expected_images": images, "precision": precision}
        return Pipeline(package, "auto", **further).opened_with("vae_decoder").name

    return takes


@pytest.mark.parametrize("fits", [True, False])
def test_auto_ignores_prepared_graphs_that_would_not_be_used(
    auto_takes: Callable[[Package, int, str], str], tmp_path: Path, fits: bool
) -> None:
    loaded = Package.load(PACKAGE_DIR, verify=False)
    sidecar = _prepared(loaded, tmp_path, "onnxruntime", None if fits else "1")
    assert auto_takes(loaded, 1, "f32") == ("onnxruntime" if fits else "openvino")
    assert auto_takes(loaded, 4, "f32") == "openvino"
    sidecar.write_text("{", encoding="utf-8")
    assert auto_takes(loaded, 1, "f32") == "openvino"


@pytest.mark.parametrize("damage", ["", "version", "precision", "sidecar"])
def test_auto_asks_the_same_of_graphs_that_openvino_compiled(
    auto_takes: Callable[[Package, int, str], str], tmp_path: Path, damage: str
) -> None:
    pytest.importorskip("openvino", exc_type=ImportError)
    loaded = Package.load(PACKAGE_DIR, verify=False)
    _prepared(loaded, tmp_path, "onnxruntime")
    sidecar = _prepared(loaded, tmp_path, "openvino", "1" if damage == "version" else None)
    if damage == "sidecar":
        sidecar.write_text("{", encoding="utf-8")
    taken = auto_takes(loaded, 1, "f32" if damage == "precision" else "bf16")
    assert taken == ("onnxruntime" if damage else "openvino")


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "1", 2**40])
def test_expected_images_are_a_positive_number(count: object) -> None:
    with pytest.raises(InvalidArgumentError, match="expected_images"):
        load_pipeline(PACKAGE_DIR, "auto", verify=False, expected_images=count)


def test_auto_without_any_engine_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdexport.engines.backends, "_installed", lambda name: False)
    with pytest.raises(ImportError, match=r"pip install 'sdexport\[cpu\]'"):
        choose()


def test_plan_that_was_not_built_says_how(package: Path) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    with (
        load_pipeline(package, "tensorrt-rtx", verify=False) as pipe,
        pytest.raises(FileNotFoundError, match="build it: sdexport build PACKAGE --backend tens"),
    ):
        pipe.session("unet")


@pytest.mark.parametrize("backend", [None, 5, ["onnxruntime"], {"unet": None}])
def test_backends_that_are_no_names(backend: object) -> None:
    with pytest.raises(InvalidArgumentError, match="backend must be a name, or names by component"):
        check_backends(backend, ("unet",))  # type: ignore[arg-type]
