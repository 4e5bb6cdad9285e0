"""Runs tasks one after the other, each in a process of its own, and saves a report after each.

The report names the tasks that run before they begin. When the program is started again, what is
named there was running when the machine or the program went away. Tasks that failed are not run
again, unless that is asked for: the rest is worth more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.gpu_process import TaskProcess, reported, result_path
from benchmarks.reports import save
from sdexport.engines.errors import InvalidArgumentError

SCHEMA = 2
POLL = 0.02
ENVIRONMENT = "environment"
"""The task that finds out what cannot run here."""
LOST = "the program ended while this ran: it was killed, or the machine was taken away"
LEAST_SECONDS = 5.0
"""A task whose estimate is longer than the time that is left is not started; one second is enough
for none."""


@dataclass(frozen=True)
class Task:
    """A task of the plan.

    Attributes:
      name: such as "sd15.torch"; the worker finds the function by it.
      seconds: estimate, with the start of its process.
      limit: seconds after which it is killed.
      needs: tasks whose files it reads; without them it is not run.
      after: tasks that are waited for if they are running, but may have failed.
      background: the next task starts at once; tasks that need this one wait for its end.
      standard: part of the default plan.
      library: what it tests. The task is skipped if `environment`, which it needs then, found that
        this cannot run on this GPU.
    """

    name: str
    seconds: float
    limit: float
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    background: bool = False
    standard: bool = True
    library: str = ""

    def slower(self, factor: float) -> Task:
        """The task on a machine that takes so many times as long."""
        return replace(self, seconds=factor * self.seconds, limit=factor * self.limit)


def chosen(tasks: Sequence[Task], only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[Task]:
    """The tasks of --only and --skip, patterns such as "sd15.*"; by default the standard ones.

    What a task needs is included.

    Raises: InvalidArgumentError: a pattern matches no task.
    """
    for pattern in (*only, *skip):
        if not any(fnmatchcase(task.name, pattern) for task in tasks):
            names = ", ".join(task.name for task in tasks)
            raise InvalidArgumentError(f"no task is named {pattern!r}; the tasks are {names}")
    wanted = {t.name for t in tasks if (_matches(t.name, only) if only else t.standard)}
    wanted -= {t.name for t in tasks if _matches(t.name, skip)}
    for task in reversed(tasks):
        if task.name in wanted:
            wanted |= set(task.needs)
    return [task for task in tasks if task.name in wanted]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def expected_seconds(tasks: Sequence[Task]) -> list[tuple[Task, float]]:
    """For each task the seconds after which it has ended, from the start of the program."""
    clock, ends = 0.0, {}
    for task in tasks:
        clock = max([clock, *(ends.get(name, 0.0) for name in (*task.needs, *task.after))])
        ends[task.name] = clock + task.seconds
        if not task.background:
            clock = ends[task.name]
    return [(task, ends[task.name]) for task in tasks]


def plan(tasks: Sequence[Task], report: Mapping[str, Any]) -> str:
    """The tasks with their seconds, and what the report has of them."""
    lines, last = [f"{'task':36}{'seconds':>8}{'ends at':>9}{'limit':>7}"], 0.0
    for task, end in expected_seconds(tasks):
        result = report.get("tasks", {}).get(task.name)
        state = "" if result is None else "failed before" if "error" in result else "done"
        state = cannot_run(task, report) or state
        note = ", ".join(filter(None, ["in the background" if task.background else "", state]))
        lines.append(f"{task.name:36}{task.seconds:8g}{end:9.0f}{task.limit:7g}  {note}".rstrip())
        last = max(last, end)
    return "\n".join([*lines, f"{'total':36}{last:8.0f}"])


def cannot_run(task: Task, report: Mapping[str, Any]) -> str:
    """Why the library of a task cannot run on this GPU, if the report says so; "" otherwise."""
    found = report.get("tasks", {}).get(ENVIRONMENT, {}).get("cannot_run", {})
    return str(found.get(task.library, ""))


def load_report(path: Path) -> dict[str, Any]:
    """The report to continue, or a new one; what was running then is marked as failed.

    Raises: InvalidArgumentError: the file is no report.
    """
    if not path.exists():
        return {"schema": SCHEMA, "tasks": {}, "running": {}}
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if report["schema"] != SCHEMA:
            raise ValueError(f"schema {report['schema']}, and not {SCHEMA}")
        tasks, running = dict(report["tasks"]), dict(report["running"])
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(
            f"{path} is no report of this benchmark ({error!s:.100}); name another file"
        ) from error
    for name, where in running.items():
        partial = reported(Path(str(where)))
        done = partial.pop("done", False)
        tasks[name] = partial if done else partial | {"error": LOST}
    return report | {"tasks": tasks, "running": {}}


@dataclass
class Program:
    """Runs tasks and keeps the report.

    Attributes:
      tasks: in their order.
      report: see load_report; changed in place.
      command: of the worker.
      folder: for results and logs of tasks.
      settings: what each task is given, JSON values.
      files: the report is written to each of these.
      budget: seconds for everything; no task is started whose estimate does not fit.
      retry: run again what failed.
      say: prints a line.
    """

    tasks: Sequence[Task]
    report: dict[str, Any]
    command: Sequence[str]
    folder: Path
    settings: Mapping[str, Any]
    files: Sequence[Path]
    budget: float
    retry: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    say: Callable[[str], object] = print

    def run(self) -> None:
        """Run what has no result yet. After Ctrl-C the running tasks are run the next time."""
        self._end = time.monotonic() + self.budget
        self._running: dict[str, TaskProcess] = {}
        self._spare: TaskProcess | None = None
        self._broken = False
        self.report["not_run"] = {}
        with self._ending():
            for task in self.tasks:
                if self._wanted(task):
                    self._start(task)
                    if not task.background:
                        self._wait([task.name])
            self._wait(list(self._running))

    @contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        finally:
            for name, process in self._running.items():
                process.close()
                self.say(f"{name}: stopped, and run the next time")
            if self._spare is not None:
                self._spare.close()
            self.report["running"] = {}
            self._save()

    def _wanted(self, task: Task) -> bool:
        """Whether to start a task now; waits for those that it needs."""
        before = self.report["tasks"].get(task.name)
        if before is not None and "error" not in before:
            return False
        if before is not None and not self.retry:
            return self._pass_over(
                task, f"skipped, it failed before ({before['error']}); --retry runs it again"
            )
        self._wait([n for n in (*task.needs, *task.after) if n in self._running])
        for name in task.needs:
            if "error" in self.report["tasks"].get(name, {"error": ""}):
                return self._pass_over(task, f"skipped, it needs {name}, of which there is nothing")
        if problem := cannot_run(task, self.report):
            return self._pass_over(task, f"skipped: {problem}")
        if self._broken:
            return self._pass_over(task, "skipped, because a task before it could not be ended")
        left = self._end - time.monotonic()
        if left < max(task.seconds, LEAST_SECONDS):
            return self._pass_over(
                task, f"not started: it takes {task.seconds:g} s, and {max(left, 0):.0f} s are left"
            )
        return True

    def _pass_over(self, task: Task, reason: str) -> bool:
        self.say(f"{task.name}: {reason}")
        self.report["not_run"][task.name] = reason
        return False

    def _start(self, task: Task) -> None:
        process, self._spare = self._spare or self._worker(), None
        self.report["tasks"].pop(task.name, None)
        result = result_path(self.folder, task.name)
        result.unlink(missing_ok=True)
        self.report["running"][task.name] = str(result.resolve())
        self._running[task.name] = process
        self._save()  # before it begins: this is what a later run finds
        limit = min(task.limit, max(self._end - time.monotonic(), LEAST_SECONDS))
        process.begin(task.name, self.settings, limit)
        if task is not self.tasks[-1]:
            self._spare = self._worker()  # imports its libraries while the task runs

    def _worker(self) -> TaskProcess:
        return TaskProcess(self.command, self.folder, self.environment)

    def _wait(self, names: Sequence[str]) -> None:
        """Until these have ended; the others are watched too."""
        while any(name in self._running for name in names):
            for name in list(self._running):
                result = self._running[name].finished()
                if result is not None:
                    self._ended(name, result)
            time.sleep(POLL)

    def _ended(self, name: str, result: dict[str, Any]) -> None:
        del self._running[name]
        self.report["running"].pop(name, None)
        self.report["tasks"][name] = result
        self._broken = self._broken or "cannot be ended" in result.get("error", "")
        self._save()
        self.say(f"{name}: {result['seconds']:.1f} s {result.get('error', '')}".rstrip())

    def _save(self) -> None:
        for path in self.files:
            save(self.report, path)
