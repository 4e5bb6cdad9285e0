"""Test and time everything on an NVIDIA GPU that is there for a quarter of an hour.

    python -m benchmarks.gpu --work DIR --json gpu.json [--budget 840] [--only 'sd15.*'] [--plan]

Needs a machine with Python and the wheels only (docs/gpu-benchmark.md says how to bring them
there): the models are published architectures with seeded random weights, exported there.

Every task runs in a process of its own, with a time limit, and is named in the report before it
begins. A task that crashes, hangs, raises or runs out of memory costs itself alone, and is not run
again by the next start, which continues the report; --retry does. What a task measured before it
failed is kept. --device cpu is a dry run: every task, with tiny models.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_goals import goals, lines
from benchmarks.gpu_plan import tasks
from benchmarks.gpu_program import Program, chosen, load_report, plan
from benchmarks.reports import save
from sdexport.engines.errors import InvalidArgumentError

WORKER = (sys.executable, "-m", "benchmarks.gpu_worker")
DRY_RUN = "dry run on a CPU with tiny models: no figure here is that of a GPU"
BUDGET = 840.0
"""Seconds: a quarter of an hour, less a minute for what comes before."""
SLOWER = 6.0
"""Of a dry run: two cores that have other work too."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the tasks that are not in the report yet, within the budget; return the report.

    Raises: InvalidArgumentError: a pattern matches no task, or a file is not what it should be.
    """
    slower = args.slower or (1.0 if args.device == "cuda" else SLOWER)
    selected = [task.slower(slower) for task in chosen(tasks(), args.only, args.skip)]
    report = load_report(args.json)
    _check_device(report, args)
    if args.plan:
        print(plan(selected, report))
        return report
    report["device"] = args.device
    if args.device != "cuda":
        report["dry_run"] = DRY_RUN
    args.work.mkdir(parents=True, exist_ok=True)
    folder = args.work.resolve() / "tasks"
    settings = {
        "device": args.device,
        "work": str(args.work.resolve()),
        "results": str(folder),
        "repeats": args.repeats,
        "seconds": args.seconds,
    }
    files = [args.json, *([args.copy / args.json.name] if args.copy else [])]
    started = time.monotonic()
    program = Program(
        tasks=selected,
        report=report,
        command=WORKER,
        folder=folder,
        settings=settings,
        files=files,
        budget=args.budget,
        retry=args.retry,
        environment=_environment(),
        say=lambda text: print(f"[{time.monotonic() - started:6.1f}] {text}", flush=True),
    )
    try:
        program.run()
    finally:
        report["goals"] = goals(report)
        for path in files:
            save(report, path)
    print("\n".join(lines(report["goals"])))
    return report


def _check_device(report: dict[str, Any], args: argparse.Namespace) -> None:
    """A report is of one device: figures of a dry run must not be among those of a GPU."""
    before = report.get("device", args.device)
    if before != args.device:
        raise InvalidArgumentError(
            f"{args.json} is of --device {before}; name another file for --device {args.device}"
        )


def _environment() -> dict[str, str]:
    """Variables of the workers: this checkout's modules, and no access to a hub."""
    root = str(Path(__file__).resolve().parents[1])
    path = [root, *(p for p in sys.path if p and p != root)]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    offline |= {"ORT_DISABLE_TELEMETRY": "1"}
    return {"PYTHONPATH": os.pathsep.join(path), **offline}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.gpu",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", type=Path, required=True, help="the report; an existing one is continued"
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for weights, packages and logs; 20 GB"
    )
    parser.add_argument("--copy", type=Path, help="also write the report into this folder")
    parser.add_argument("--only", nargs="+", default=[], metavar="TASK", help="such as 'sd15.*'")
    parser.add_argument("--skip", nargs="+", default=[], metavar="TASK", help="such as '*compile'")
    parser.add_argument("--plan", action="store_true", help="print the tasks with their seconds")
    parser.add_argument("--retry", action="store_true", help="run again what failed before")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run")
    parser.add_argument(
        "--budget", type=_seconds, default=BUDGET, help="seconds; what does not fit is not started"
    )
    parser.add_argument(
        "--slower", type=_seconds, help="multiplies estimates and limits; default 1, dry run 6"
    )
    parser.add_argument("--repeats", type=_count, default=30, help="timed calls of a component")
    parser.add_argument("--seconds", type=_seconds, default=3.0, help="at most, for one component")
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"seconds from 0 to a million, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"a number from 1 to 10000, got {text}")
    return value


def stop_in_order() -> None:
    """Let SIGTERM, such as that of `timeout`, end the program as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)


def main() -> None:
    stop_in_order()
    try:
        run(parse())
    except (InvalidArgumentError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
