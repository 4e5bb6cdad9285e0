"""The fuzz targets under Atheris: python -m tests.fuzz.run [--seconds 60] [TARGET...]

Each target runs in a process of its own and begins with the kept inputs and those that earlier runs
have found. Prints a line for each target, writes a report, and ends with status 1 if anything went
wrong; the inputs are then in WORK/TARGET/findings.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.replay import CORPUS
from tests.fuzz.targets import NAMES

_STATUS = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)/(\d+)(b|Kb|Mb)")
_RUNS = re.compile(r"number_of_executed_units: *(\d+)")
_UNITS = {"b": 1, "Kb": 1024, "Mb": 2**20}
_HEADER = f"{'target':<18}{'inputs':>10}{'per s':>8}{'edges':>8}{'corpus':>8}{'KiB':>8}{'wrong':>7}"
_GRACE = 300
"""Seconds that a process may take in addition, to start and to read its corpus."""


@dataclass(frozen=True)
class Outcome:
    """What one target's process did.

    coverage, features: libFuzzer's numbers of edges, and of edges with counters. corpus: inputs
    that reach something new. findings: what went wrong, each kind once.
    """

    target: str
    inputs: int
    seconds: float
    coverage: int
    features: int
    corpus: int
    corpus_bytes: int
    findings: tuple[str, ...]

    def __str__(self) -> str:
        rate = self.inputs / max(self.seconds, 1)
        return (
            f"{self.target:<18}{self.inputs:>10,}{rate:>8.0f}{self.coverage:>8}{self.corpus:>8}"
            f"{self.corpus_bytes >> 10:>8}{len(self.findings):>7}"
        )


def run(name: str, work: Path, seconds: int) -> Outcome:
    """Run a target in a process of its own."""
    folder = work / name
    shutil.rmtree(folder / "findings", ignore_errors=True)
    grown = folder / "corpus"
    grown.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-print_final_stats=1", "-verbosity=1"]
    seeds = [str(CORPUS / name)] if (CORPUS / name).is_dir() else []
    command = [sys.executable, "-m", "tests.fuzz.worker", name, str(folder), *options]
    begun, log = time.monotonic(), folder / "log"
    with log.open("wb") as output:
        process = subprocess.run(
            [*command, f"-artifact_prefix={folder}/", str(grown), *seeds],
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=seconds + _GRACE,
            check=False,
        )
    text = log.read_text(encoding="utf-8", errors="replace")
    found = [json.loads(p.read_bytes())["finding"] for p in (folder / "findings").glob("*.json")]
    if process.returncode:
        found.append(f"the process ended with status {process.returncode}; see {log}")
    status, runs = _STATUS.findall(text), _RUNS.findall(text)
    coverage, features, corpus, size, unit = status[-1] if status else (0, 0, 0, 0, "b")
    return Outcome(
        name,
        int(runs[-1]) if runs else 0,
        round(time.monotonic() - begun, 1),
        int(coverage),
        int(features),
        int(corpus),
        int(size) * _UNITS[unit],
        tuple(sorted(found)),
    )


def report(outcomes: list[Outcome], earlier: dict[str, Any]) -> dict[str, Any]:
    """The run as JSON can hold it.

    Args:
      earlier: another report, whose inputs and seconds are added; {} for none.
    """
    targets = {each["target"]: each for each in earlier.get("targets", ())}
    for outcome in outcomes:
        found = asdict(outcome)
        for key in ("inputs", "seconds"):
            found[key] += targets.get(outcome.target, {}).get(key, 0)
        targets[outcome.target] = found
    return {
        "python": platform.python_version(),
        "atheris": importlib.metadata.version("atheris"),
        "inputs": sum(each["inputs"] for each in targets.values()),
        "targets": [targets[name] for name in sorted(targets)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default all of them")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--work", type=Path, default=Path(".fuzz"), help="corpus and findings")
    parser.add_argument("--json", type=Path, help="file for the report")
    parser.add_argument("--add", action="store_true", help="to the report in that file")
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(NAMES)
    if unknown:
        parser.error(f"unknown target {', '.join(sorted(unknown))}; known are {', '.join(NAMES)}")
    if importlib.util.find_spec("atheris") is None:
        parser.error(
            "Atheris is not installed; it is for Linux and Python 3.11 to 3.13. "
            "`python -m tests.fuzz.replay TARGET 100000` tries random inputs without it"
        )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = arguments.targets or NAMES
    print_line(_HEADER)
    outcomes = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for outcome in pool.map(lambda name: run(name, arguments.work, arguments.seconds), names):
            outcomes.append(outcome)
            print_line(str(outcome))
            for finding in outcome.findings:
                print_line(f"  {finding}")
    print_line(f"{sum(each.inputs for each in outcomes):,} inputs")
    if arguments.json:
        add = arguments.add and arguments.json.is_file()
        earlier = json.loads(arguments.json.read_bytes()) if add else {}
        text = json.dumps(report(outcomes, earlier), indent=2) + "\n"
        arguments.json.write_text(text, encoding="utf-8")
    sys.exit(any(each.findings for each in outcomes))


def print_line(text: str) -> None:
    """Print at once, also into a file."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
