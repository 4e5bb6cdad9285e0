"""The tasks of the GPU benchmark, run on a CPU with the demo model, so that they work on a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_goals, gpu_measure, gpu_table, gpu_work
from benchmarks.gpu_names import COMPILED, ORT, ORT_GRAPH, TORCH, TORCH_GRAPH
from benchmarks.gpu_plan import tasks
from benchmarks.gpu_program import SCHEMA, chosen
from benchmarks.reports import save
from sdexport.builds.engine_builder import EngineSizes
from sdexport.engines.errors import InvalidArgumentError
from tests.helpers.fake_tensorrt import install, write_plan
from tests.tolerances import CUDA_NOISE_ABS, GPU_TASK_COSINE, GPU_TASK_IMAGE_MEAN, IMAGE_ABS

TRT = "tensorrt"
RunTask = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def run_task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunTask]:
    """Runs a task in this process, with a stand-in for TensorRT."""

    def build(package: Any, *, engine_dir: Path, sizes: EngineSizes, **options: Any) -> list[Any]:
        assert sizes.static and sizes.height is not None
        (engine_dir / TRT).mkdir(parents=True)
        write_plan(package.model_path("unet"), engine_dir / TRT / "unet.plan", TRT)
        return []

    work = tmp_path_factory.mktemp("gpu")
    settings = {"device": "cpu", "work": str(work), "results": str(work), "repeats": 2}
    settings["seconds"] = 1.0

    def run(name: str) -> dict[str, Any]:
        result: dict[str, Any] = {}

        def report(values: Mapping[str, Any]) -> None:
            result.update(values)
            save(result, work / f"{name}.json")

        gpu_work.run(name, settings, report)
        return json.loads((work / f"{name}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        patch.setattr(gpu_measure, "build", build)
        yield run


@pytest.fixture(scope="module")
def report(run_task: RunTask) -> dict[str, Any]:
    names = ["environment", "limits", "noise", "demo.package"]
    names += [f"demo.{c}" for c in (TORCH, ORT, ORT_GRAPH, TORCH_GRAPH, TRT)]
    found = {"schema": SCHEMA, "dry_run": gpu.DRY_RUN, "tasks": {n: run_task(n) for n in names}}
    return found | {"goals": gpu_goals.goals(found)}


def test_gpu_tasks_compare_and_time(report: dict[str, Any]) -> None:
    assert report["tasks"]["environment"]["gpu"]["name"] == "Fake GPU"
    assert max(report["tasks"]["noise"]["largest_difference"].values()) <= CUDA_NOISE_ABS
    assert report["tasks"]["demo.package"]["bytes"] > 1e6
    for contender in (TORCH, ORT, ORT_GRAPH, TORCH_GRAPH):
        task = report["tasks"][f"demo.{contender}"]
        rows = [task, *(row for row in task.values() if isinstance(row, dict))]
        assert [row["error"] for row in rows if "error" in row] == []
        for component in gpu_measure.COMPONENTS:
            row = task[component]
            assert row["to_fp32"]["cosine"] > GPU_TASK_COSINE
            assert row["host"]["median_us"] > 0 and row["shares"]["arithmetic"] > 0
            assert row["work"]["flops"] > 1e6 and row["work"]["bytes"] > 1e6
        assert len(task["image.2"]["seconds"]) == gpu_measure.IMAGES
        if contender == TORCH_GRAPH:
            assert task["image.2"]["most_of_255"] <= IMAGE_ABS
        elif contender != TORCH:
            assert task["image.2"]["mean_of_255"] <= GPU_TASK_IMAGE_MEAN
        assert task["device_bytes"] >= 0 and task["profile"]["wall_s"] > 0
    assert report["tasks"][f"demo.{TORCH}"]["profile"]["host_share"] < 1
    assert report["tasks"][f"demo.{ORT}"]["contract"]["outputs_untouched"]


def test_gpu_experiment_chooses_among_rewritten_graphs(report: dict[str, Any]) -> None:
    task = report["tasks"][f"demo.{ORT_GRAPH}"]
    rows = task["variants"]
    assert [row["attention_rewritten"] for row in rows.values()] == [0, 14, 14]
    assert task["variant"] == min(rows, key=lambda name: rows[name]["host"]["median_us"])


def test_gpu_benchmark_times_no_wrong_output(report: dict[str, Any]) -> None:
    """The stand-in computes something else, and has no text encoder."""
    task = report["tasks"][f"demo.{TRT}"]
    assert task["unet"]["to_fp32"]["cosine"] < gpu_goals.COSINE and "host" not in task["unet"]
    assert "no engine" in task["text_encoder"]["error"]


def test_gpu_table_names_the_dry_run(report: dict[str, Any]) -> None:
    table = gpu_table.table(report)
    assert table.startswith(f"On {gpu.DRY_RUN} (`python -m benchmarks.gpu`; random weights; ")
    assert f"|  | {TORCH} | {ORT} | {ORT_GRAPH} | {TORCH_GRAPH} |" in table
    for row in ("unet, ms", "image of 2 steps, s", "host's share of an image", "memory, GB"):
        assert f"| {row} | " in table
    assert "sd15: image of 50 steps, s: -, goal 0.55: not measured on an H100 or H200" in table


def test_gpu_task_of_another_name_is_an_error(run_task: RunTask) -> None:
    with pytest.raises(InvalidArgumentError, match=r"no task is named 'demo\.nothing'"):
        run_task("demo.nothing")


def image(seconds: float, share: float | None = 0.01, cosine: float = 0.9999) -> dict[str, Any]:
    found = {"unet": {"to_fp32": {"cosine": cosine}}, "profile": {"host_share": share}}
    return found | {f"image.{n}": {"seconds": [9.0, seconds, 0.0]} for n in (30, 50)}


@pytest.mark.parametrize(
    ("gpu_name", "ours", "reached"),
    [
        ("NVIDIA H200", {ORT: image(0.6), ORT_GRAPH: image(0.5)}, (True, True)),
        ("NVIDIA H200", {ORT: image(0.5, 0.04)}, (True, False)),
        ("NVIDIA H100 80GB", {ORT: image(0.6, None)}, (False, None)),
        ("NVIDIA H200", {ORT: image(0.5, cosine=0.9)}, (None, None)),
        ("NVIDIA H200", {ORT: image(0.5, cosine=float("nan"))}, (None, None)),
        ("NVIDIA A100", {ORT: image(0.5)}, (None, None)),
        ("NVIDIA H200", {ORT: {"error": "gone"}}, (None, None)),
        ("NVIDIA H200", {}, (None, None)),
    ],
)
def test_gpu_goals_are_reached_or_not(
    gpu_name: str, ours: dict[str, Any], reached: tuple[bool | None, ...]
) -> None:
    found = {f"sd15.{name}": task for name, task in ours.items()}
    found |= {"environment": {"gpu": {"name": gpu_name}}, f"sd15.{TORCH}": image(0.8)}
    rows = gpu_goals.goals({"tasks": found})
    assert tuple(row["reached"] for row in rows[:2]) == reached
    assert rows[0]["torch"] == (TORCH, 0.8) and rows[2]["ours"] is None
    assert all(row["reached"] is None for row in gpu_goals.goals({"tasks": found, "dry_run": "x"}))
    text = "\n".join(gpu_goals.lines(rows))
    assert "PyTorch 0.8 with torch" in text and "sdxl: image of 30 steps, s: -, goal 1.6" in text


def test_gpu_report_of_a_dry_run_is_not_continued_on_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    save({"schema": SCHEMA, "device": "cpu", "tasks": {}, "running": {}}, path)
    args = gpu.parse(["--json", str(path), "--work", str(tmp_path), "--plan"])
    with pytest.raises(InvalidArgumentError, match="is of --device cpu; name another file"):
        gpu.run(args)


def test_gpu_plan_is_printed_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--json", str(tmp_path / "a.json"), "--work", str(tmp_path / "w"), "--plan"]
    gpu.run(gpu.parse([*line, "--only", "sd15.torch"]))
    printed = capsys.readouterr().out
    assert [row.split()[0] for row in printed.splitlines()] == [
        *("task", "sd15.package", "sd15.torch", "total")
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "x", "1e9"])
def test_gpu_budget_must_be_a_number_of_seconds(value: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        gpu.parse(["--json", "a", "--work", "w", "--budget", value])
    assert "--budget" in capsys.readouterr().err


@pytest.mark.slow
def test_gpu_benchmark_runs_every_task_of_its_plan(tmp_path: Path) -> None:
    """In processes, with tiny models; engines are not built, which needs a GPU for some."""
    skipped = [t.name for t in chosen(tasks()) if "tensorrt" in t.name]
    line = ["--device", "cpu", "--work", str(tmp_path), "--json", str(tmp_path / "a.json")]
    line += ["--repeats", "2", "--seconds", "1", "--budget", "3000"]
    report = gpu.run(gpu.parse([*line, *(["--skip", *skipped] if skipped else [])]))
    assert report["not_run"] == {}
    assert report["tasks"].keys() == {t.name for t in chosen(tasks()) if t.name not in skipped}
    for name, task in report["tasks"].items():
        rows = {"": task, **{k: v for k, v in task.items() if isinstance(v, dict)}}
        errors = {k: row["error"] for k, row in rows.items() if "error" in row}
        assert not errors or (name, *errors) == ("environment", "gpu"), errors
    for model in ("demo", "sd15", "sdxl"):
        row = report["tasks"][f"{model}.{ORT_GRAPH}"]["unet"]
        assert row["to_fp32"]["cosine"] > GPU_TASK_COSINE
        image = report["tasks"][f"{model}.{ORT}"]["image.2"] if model != "sdxl" else {}
        assert image.get("mean_of_255", 0.0) <= GPU_TASK_IMAGE_MEAN
    assert report["tasks"][f"sd15.{COMPILED}"]["image.2"]["most_of_255"] <= IMAGE_ABS
    assert report["dry_run"] == gpu.DRY_RUN and all(g["reached"] is None for g in report["goals"])
