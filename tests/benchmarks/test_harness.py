"""The benchmark harness: groups, checks, rounds and tables, with scripts as contenders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import contenders, latency, standard, tables
from benchmarks.contenders import CONTENDERS, Contender, chosen, groups
from benchmarks.models import Model
from sdexport.engines.errors import WorkerError
from sdexport.engines.worker_process import Worker

PEER = """
import sys, numpy as np
from sdexport.engines.worker_process import serve

def component(name, feeds, output=None):
    np.savez(output, out_sample=np.load(feeds)["sample"] + {added})
    return {{"seconds": 0.5, "peak_mb": 10.0}}

def image(arguments, latents, output=None):
    steps = arguments["num_inference_steps"]
    np.save(output, np.full((8, 8, 3), steps + {added}, np.uint8))
    return {{"seconds": float(steps), "peak_mb": 20.0}}

serve({{"open": lambda model, **options: {{"components": {{"unet": {{}}}}, "versions": {{}}}},
       "component": component, "image": image}})
"""


@pytest.fixture
def model(tmp_path: Path) -> Model:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "a.safetensors").write_bytes(b"0" * 1_000_000)
    return Model("toy", tmp_path / "checkpoint", tmp_path / "package", (64,))


def contenders_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, added: dict[str, float]
) -> list[Contender]:
    for name, value in added.items():
        (tmp_path / f"{name}.py").write_text(PEER.format(added=value), encoding="utf-8")

    def start(contender: Contender, model: Model, work: Path) -> tuple[Worker, Any]:
        if contender.name == "absent":
            raise WorkerError("installing absent.txt failed: no such package")
        worker = Worker([sys.executable, tmp_path / f"{contender.name}.py"])
        return worker, worker.request("open", model="")

    monkeypatch.setattr(latency, "start", start)
    monkeypatch.setenv("PYTHONPATH", str(contenders.ROOT))
    return [Contender(name, "script", memory=1.0) for name in added]


@pytest.fixture
def report(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    rivals = contenders_of(tmp_path, monkeypatch, {"reference": 0, "same": 0, "other": 5})
    rivals.append(Contender("absent", "script"))
    arrays = {"unet": {"sample": np.ones((1, 4, 8, 8), np.float32)}}
    arrays["vae_decoder"] = {"latent_sample": np.ones((1, 4, 8, 8), np.float32)}
    monkeypatch.setattr(latency, "feeds_for", lambda *_: arrays)
    return latency.run(model, 64, rivals, tmp_path, rounds=2, memory_gb=10)


def test_latency_does_not_time_wrong_outputs(report: dict[str, Any]) -> None:
    (rows,) = report["groups"]
    assert rows["reference"]["cases"]["unet"]["check"] == {"reference": True}
    assert rows["same"]["cases"]["picture"]["check"]["mean"] == 0
    for case in ("unet", "picture"):
        assert "differs from the reference" in rows["other"]["cases"][case]["error"]
        assert "median_s" not in rows["other"]["cases"][case]
    assert "no such package" in rows["absent"]["error"]


def test_latency_reports_the_warm_up_separately(report: dict[str, Any]) -> None:
    figures = report["groups"][0]["same"]["cases"]["picture"]
    assert figures["samples_s"] == [latency.STEPS] * 2
    assert figures["warm_up_s"] == latency.WARM_UP_STEPS
    assert "vae_decoder" not in report["groups"][0]["same"]["cases"]


def test_turns_start_no_round_after_the_deadline() -> None:
    now = latency.time.monotonic()
    assert list(latency.Turns(3, now + 60)) == [0, 1, 2, 3]
    assert list(latency.Turns(3, now - 1)) == [0, 1]


def test_table_states_the_rounds_that_were_run() -> None:
    report = {"groups": [{"a": timed(2), "b": timed(2)}], "num_inference_steps": 5}
    report |= {"model": "toy", "size": [64, 64]}
    first, second = (row["cases"]["picture"] for row in report["groups"][0].values())
    first["samples_s"], second["samples_s"] = [2.0], [2.0]
    assert "rounds: 1; seconds" in tables.latency(report)
    second["samples_s"] = [2.0] * 3
    assert "rounds: 1 to 3; seconds" in tables.latency(report)


def test_groups_fit_into_memory_and_share_the_reference(model: Model) -> None:
    rivals = [Contender(name, "script", memory=1.0) for name in "abcdef"]
    found = groups(rivals, model, 0.003)  # the model has 0.001 GB
    assert [[c.name for c in group] for group in found] == [
        ["a", "b", "c"],
        ["a", "d", "e"],
        ["a", "f"],
    ]
    assert len(groups(rivals, model, 1.0)) == 1
    kinds = ("fp32", "fp32", "bf16", "i8")
    mixed = [Contender(n, "script", p) for n, p in zip("abcd", kinds, strict=True)]
    assert [[c.name for c in g] for g in groups(mixed, model, 1.0)] == [["a", "b"], ["c", "d"]]
    assert all(len(group) == 2 for group in groups(rivals, model, 0.0))


def test_chosen_accepts_beginnings_of_names() -> None:
    assert {c.library for c in chosen(["sdexport"])} == {"sdexport"}
    assert [c.name for c in chosen(["diffusers bf16"])] == ["diffusers bf16"]
    found = [c.name for c in chosen(["diffusers b", "optimum fp32"])]
    assert found == ["optimum fp32", "diffusers bf16", "diffusers bf16 channels_last"]
    assert not any(c.slow for c in chosen([]))
    assert any(c.slow for c in chosen([], slow=True))
    with pytest.raises(ValueError, match="no contender 'fast'; choose among diffusers fp32"):
        chosen(["fast"])


def test_every_library_has_a_worker_and_pinned_requirements() -> None:
    for library in {c.library for c in CONTENDERS.values()} - {contenders.OURS}:
        assert (contenders.PEERS / f"{library}_worker.py").is_file()
        lines = (contenders.PEERS / f"{library}.txt").read_text(encoding="utf-8").split()
        assert all("==" in line for line in lines) and "torch==2.13.0" in lines


def test_every_standard_part_is_a_module() -> None:
    folder = Path(standard.__file__).parent
    assert all((folder / f"{part.module}.py").is_file() for part in standard.PARTS.values())
    assert sum(p.minutes for p in standard.PARTS.values() if p.standard) <= 50


def timed(seconds: float) -> dict[str, Any]:
    figures = {"median_s": seconds, "p20_s": seconds, "p80_s": seconds}
    return {"precision": "fp32", "cases": {"picture": figures}}


def test_ratio_between_groups_uses_the_reference() -> None:
    report = {"groups": [{"r": timed(8), "a": timed(2)}, {"r": timed(16), "b": timed(8)}]}
    assert tables.ratio(report, "a", "r", "picture") == 4
    assert tables.ratio(report, "a", "b", "picture") == 2
    assert tables.ratio(report, "a", "unknown", "picture") is None
    report["groups"].append({"s": timed(4), "c": timed(2)})  # another reference
    assert tables.ratio(report, "s", "c", "picture") == 0.5
    assert tables.ratio(report, "a", "c", "picture") is None


def test_tables_show_figures_and_errors(report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "latency-toy-64.json"
    path.write_text(json.dumps(report), encoding="utf-8")
    text = tables.figures(tmp_path / "results")
    assert "| same | 0.5 (0.5 to 0.5) | 5 (5 to 5) |" in text
    assert "- absent: installing absent.txt failed" in text
    assert "- other, unet: differs from the reference" in text
