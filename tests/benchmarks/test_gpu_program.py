"""The GPU benchmark survives whatever its tasks do, and being killed itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_plan import tasks
from benchmarks.gpu_process import reported, result_path
from benchmarks.gpu_program import (
    ENVIRONMENT,
    LOST,
    SCHEMA,
    Task,
    chosen,
    expected_seconds,
    load_report,
    plan,
)
from benchmarks.gpu_work import _cannot_run
from sdexport.engines import cuda_device
from sdexport.engines.errors import InvalidArgumentError
from tests.helpers.gpu_tasks import REPORT, ROOT, WORKER, program, task

posix = pytest.mark.skipif(os.name != "posix", reason="sends signals")
BROKEN = [*WORKER, "broken"]


class Runs:
    """Starts the program in a folder, again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []

    def __call__(self, *tasks: Task, **options: Any) -> dict[str, Any]:
        self.lines.clear()
        program(self.folder, tasks, self.lines.append, **options).run()
        report: dict[str, Any] = json.loads((self.folder / REPORT).read_text(encoding="utf-8"))
        assert report["running"] == {}
        return report

    def started(self) -> list[str]:
        path = self.folder / "runs.txt"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


FAILURES = {
    "raise": "RuntimeError: CUDA error: an illegal memory access",
    "no memory": "MemoryError",
    "exit": "the process ended: exit status 3",
    "exit without a result": "exit status 0, without a result",
    "garbage": "without a result",
}
if os.name == "posix":
    FAILURES |= {
        "segfault": "killed by SIGSEGV",
        "killed for memory": "killed (SIGKILL), perhaps because the memory was used up",
        "abort": "killed by SIGABRT",
    }


def test_tasks_that_fail_cost_themselves_alone(runs: Runs) -> None:
    names = [*FAILURES, "good"]
    report = runs(*map(task, names))
    for name, message in FAILURES.items():
        result = report["tasks"][name]
        assert message in result["error"]
        assert name == "garbage" or result["row"] == name, "what was measured before is kept"
        assert result["log"][0] == f"{name} prints a line"
    assert report["tasks"]["good"]["finished"] and "error" not in report["tasks"]["good"]
    assert runs.started() == names

    report = runs(*map(task, names))
    assert runs.started() == names, "neither the failed nor the finished are run again"
    for name in FAILURES:
        assert name in report["not_run"]
        assert any(line.startswith(f"{name}: skipped, it failed before (") for line in runs.lines)

    runs(task("raise"), task("good"), retry=True)
    assert runs.started() == [*names, "raise"]


@posix
@pytest.mark.parametrize("name", ["hang", "hang with the interpreter locked", "hang with a child"])
def test_task_that_hangs_is_killed_with_its_children(runs: Runs, name: str) -> None:
    report = runs(task(name, limit=1.0), task("good"))
    result = report["tasks"][name]
    assert result["error"] == "no end after 1 s, killed"
    assert result.get("row", name) == name  # none on a machine where the start takes so long
    assert report["tasks"]["good"]["finished"]
    if "child" in result:
        assert ended(result["child"])


def ended(process: int) -> bool:
    """Whether a process is gone, or will be as soon as its parent looks."""
    for _ in range(100):
        try:
            os.kill(process, 0)
            state = Path(f"/proc/{process}/stat")
            if state.exists() and state.read_text(encoding="ascii").rsplit(")", 1)[1][1] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


@posix
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_program_that_is_killed_goes_on_after_the_task(
    runs: Runs, tmp_path: Path, number: signal.Signals
) -> None:
    names = ["good", "hang", "last"]
    command = [sys.executable, "-m", "tests.helpers.gpu_tasks", str(tmp_path), *names]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as first:
        try:
            worker = until(lambda: reported(result_path(tmp_path / "tasks", "hang")).get("pid"))
            first.send_signal(number)
            first.wait(timeout=30)
        finally:
            first.kill()
    assert ended(worker), "the task must not go on without the program"
    report = runs(*map(task, names), budget=0.0)
    if number == signal.SIGKILL:
        assert report["tasks"]["hang"] == {"row": "hang", "pid": worker, "error": LOST}
        assert f"hang: skipped, it failed before ({LOST}); --retry runs it again" in runs.lines
    else:
        assert list(report["tasks"]) == ["good"], "what was stopped in order is run the next time"
    runs(task("good"), task("last"))
    assert runs.started() == names


def until(value: Callable[[], Any]) -> Any:
    for _ in range(2400):
        if found := value():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


@posix
def test_result_that_was_complete_when_the_program_was_killed_is_kept(tmp_path: Path) -> None:
    result = tmp_path / "good.json"
    result.write_text('{"row": 1, "done": true}', encoding="utf-8")
    before = {"schema": SCHEMA, "tasks": {}, "running": {"good": str(result), "gone": "nowhere"}}
    path = tmp_path / REPORT
    path.write_text(json.dumps(before), encoding="utf-8")
    assert load_report(path)["tasks"] == {"good": {"row": 1}, "gone": {"error": LOST}}


def test_background_tasks_are_waited_for_by_those_that_need_them(runs: Runs) -> None:
    slow, needing = task("slow", background=True), task("exit", needs=("slow",))
    lost = task("raise", needs=("exit",))
    runs(slow, task("good"), needing, lost)
    assert [line.split(":")[0] for line in runs.lines] == ["good", "slow", "exit", "raise"]
    assert "raise: skipped, it needs exit, of which there is nothing" in runs.lines


def test_worker_that_cannot_start_is_reported(runs: Runs) -> None:
    report = runs(task("good"), command=BROKEN)
    assert report["tasks"]["good"]["error"] == "the process ended: exit status 1"
    assert report["tasks"]["good"]["log"] == ["cannot import a library"]


def test_no_task_is_started_that_does_not_fit_the_budget(runs: Runs) -> None:
    report = runs(task("exit", seconds=100.0), task("good"), budget=50.0)
    assert list(report["tasks"]) == ["good"]
    assert runs.lines[0] == "exit: not started: it takes 100 s, and 50 s are left"
    assert report["not_run"] == {"exit": "not started: it takes 100 s, and 50 s are left"}


TASKS = [
    task("a.package", seconds=50.0, background=True),
    task("a.one", seconds=10.0),
    task("a.two", seconds=20.0, needs=("a.package",)),
    task("b", standard=False),
]


def test_tasks_are_chosen_by_patterns() -> None:
    def names(*only: str, skip: tuple[str, ...] = ()) -> list[str]:
        return [each.name for each in chosen(TASKS, only, skip)]

    assert names() == ["a.package", "a.one", "a.two"]
    assert names("b") == ["b"] and names("a.t*") == ["a.package", "a.two"]
    assert names(skip=("a.two",)) == ["a.package", "a.one"]
    assert names(skip=("a.*",)) == []
    with pytest.raises(InvalidArgumentError, match=r"no task is named 'c\*'; the tasks are a.pack"):
        names("c*")
    with pytest.raises(InvalidArgumentError, match="no task is named ''"):
        names(skip=("",))


def test_plan_counts_background_tasks_where_they_are_waited_for() -> None:
    assert [end for _, end in expected_seconds(TASKS)] == [50.0, 10.0, 70.0, 70.1]
    text = plan(TASKS, {"tasks": {"a.one": {}, "b": {"error": "x"}}})
    assert "a.one                                     10       10     30  done" in text
    assert "in the background" in text and text.splitlines()[-1].split() == ["total", "70"]
    assert text.splitlines()[-2].endswith("failed before")


def test_plan_of_a_gpu_fits_a_quarter_of_an_hour() -> None:
    """With two minutes for starting the machine and carrying what it needs."""
    standard = chosen(tasks())
    assert max(end for _, end in expected_seconds(standard)) <= 15 * 60 - 120
    names = [each.name for each in tasks()]
    assert len(set(names)) == len(names)
    for each in tasks():
        place = names.index(each.name)
        assert {*each.needs, *each.after} <= set(names[:place]), each.name
        assert each.limit > each.seconds


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"schema": 1}', '{"schema": 2, "tasks": 3}', "\ufeff\0", "null"]
)
def test_file_that_is_no_report_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match=r"notes\.json is no report of this benchmark"):
        load_report(path)
    assert path.read_text(encoding="utf-8") == content


def test_tasks_of_a_library_that_cannot_run_on_this_gpu_are_skipped(runs: Runs) -> None:
    (runs.folder / REPORT).write_text(
        json.dumps(
            {
                "schema": SCHEMA,
                "running": {},
                "tasks": {ENVIRONMENT: {"cannot_run": {"tensorrt-rtx": "only on 8.6, not 9.0"}}},
            }
        )
    )
    both = task("good", library="tensorrt"), task("raise", library="tensorrt-rtx")
    report = runs(*both)
    assert "raise" not in runs.started() and "error" not in report["tasks"]["good"]
    assert report["not_run"] == {"raise": "skipped: only on 8.6, not 9.0"}
    assert "raise: skipped: only on 8.6, not 9.0" in runs.lines
    assert "only on 8.6, not 9.0" in plan(both, report)


@pytest.mark.parametrize("capability, skipped", [("9.0", True), ("8.9", False)])
def test_environment_finds_what_cannot_run_here(
    monkeypatch: pytest.MonkeyPatch, capability: str, skipped: bool
) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    gpu = cuda_device.Gpu("NVIDIA H200", capability, 2**37)
    monkeypatch.setattr(cuda_device, "gpu", lambda: gpu)
    found = _cannot_run()
    assert ("tensorrt-rtx" in found) == skipped
    assert not skipped or "does not run on NVIDIA H200" in found["tensorrt-rtx"]
    of_rtx = [task for task in tasks() if task.library == "tensorrt-rtx"]
    assert {task.name for task in of_rtx} == {"demo.tensorrt-rtx", "sd15.tensorrt-rtx"}
    assert all(ENVIRONMENT in task.needs for task in of_rtx)
