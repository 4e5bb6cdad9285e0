"""A ControlNet-XS whose package was built for a backend: its graphs run, for the same images."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from sdexport.cli import main
from tests.helpers.control_nets import control_image
from tests.tolerances import IMAGE_ABS

SESSIONS = {
    "onnxruntime": "sdexport.engines.ort.prepared.prepared_session",
    "openvino": "sdexport.engines.ov.openvino_session",
}
"""By backend, the module that notes the runs of prepared graphs."""
SIZE: dict[str, tuple[str, ...]] = {
    "onnxruntime": (),
    "openvino": ("--height", "64", "--width", "64"),
}
"""What a graph is prepared for, if not for every size."""
GRAPHS = {"control_embedding", "controlnet"}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("backend", SESSIONS)
def test_prepared_graphs_give_the_same_image(
    backend: str, xs_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(backend, exc_type=ImportError)
    xs, edges = shutil.copytree(xs_folder / "xs", tmp_path / "xs"), tmp_path / "edges.png"
    control_image(64, 64).save(edges)
    session, ran = importlib.import_module(SESSIONS[backend]), set[str]()
    monkeypatch.setattr(session, "note_run", lambda name, form: ran.add(f"{name} {form}"))

    def image(name: str) -> np.ndarray:
        path = tmp_path / name
        run(
            *("generate", xs_folder / "package", "a red circle", "-o", path, "--seed", 3),
            *("--steps", 2, "--size", "64x64", "--backend", backend),
            *("--controlnet", f"{xs}:{edges}:0.8"),
        )
        with Image.open(path) as opened:
            return np.asarray(opened).astype(int)

    expected = image("before.png")
    assert not any("prepared" in each for each in ran)
    built = json.loads(run("build", xs, "--backend", backend, *SIZE[backend], "--json"))["engines"]
    assert {each["component"] for each in built} == GRAPHS
    assert f"{backend} " in run("inspect", xs) and "fresh" in run("inspect", xs)
    found = image("after.png")
    assert {f"{graph} prepared" for graph in GRAPHS} <= ran
    assert np.abs(found - expected).max() <= IMAGE_ABS
    run("verify", xs, "--backend", backend)


def test_tensorrt_rtx_engines_are_built(xs_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    arguments = ("--backend", "tensorrt-rtx", "--engine-dir", tmp_path, "--json")
    built = json.loads(run("build", xs_folder / "xs", *arguments))["engines"]
    assert {each["component"] for each in built} == GRAPHS
