"""The GPU benchmark's program over tasks that fail: `... -m tests.helpers.gpu_tasks DIR TASK ...`

Each task may take 30 s, and none is in the real plan; see gpu_task_worker.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import stop_in_order
from benchmarks.gpu_program import Program, Task, load_report

WORKER = [sys.executable, "-m", "tests.helpers.gpu_task_worker"]
ROOT = Path(__file__).parents[2]
REPORT = "gpu.json"


def task(name: str, **options: Any) -> Task:
    return Task(name, options.pop("seconds", 0.1), options.pop("limit", 30.0), **options)


def program(
    folder: Path, tasks: Sequence[Task], say: Callable[[str], object] = print, **options: Any
) -> Program:
    """A program whose report and results are in `folder`."""
    report = folder / REPORT
    settings = {"folder": str(folder), "results": str(folder / "tasks")}
    return Program(
        tasks=tasks,
        report=load_report(report),
        folder=folder / "tasks",
        settings=settings,
        files=[report],
        environment={"PYTHONPATH": str(ROOT)},
        say=say,
        **{"budget": 60.0, "command": WORKER} | options,
    )


if __name__ == "__main__":
    stop_in_order()
    program(Path(sys.argv[1]), [task(name) for name in sys.argv[2:]]).run()
