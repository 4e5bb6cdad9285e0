"""Fault injection: each call that changes a file fails once, in every action that writes files.

    python -m benchmarks.faults [SCENARIO ...] [--resume] [--json FILE]

Writes the faults of each scenario of tests/faults/scenarios.py, by kind, and what was there after
them. A scenario that leaves something else than the old or the new ends with an error. Needs Linux
and gcc; a quarter of an hour of one core. Results of scenarios that are not named are kept.
--resume goes on where an earlier run was interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.reports import save
from tests.faults.fault_server import KINDS
from tests.faults.injection import Injected, inject
from tests.faults.scenarios import SCENARIOS

RESULT = Path(__file__).parent / "results" / "faults.json"
EVERY = 30.0
"""Seconds between two lines about the progress."""


def run(names: list[str], path: Path, *, resume: bool) -> None:
    """Run scenarios; the report is written now and then, and after each of them."""
    for name in names:
        row = _rows(path).get(name) if resume else None
        earlier = None if row is None else Injected.from_dict(row)
        with tempfile.TemporaryDirectory(prefix="sdexport-faults-") as folder:
            found = inject(name, None, KINDS, Path(folder), _Progress(path), earlier)
        _save(found, path)


def _save(found: Injected, path: Path) -> None:
    """Write the row of a scenario, and keep those of the others."""
    rows = _rows(path)
    rows[found.scenario] = found.to_dict()
    in_order = [rows[each] for each in SCENARIOS if each in rows]
    faults = sum(sum(row["faults"].values()) for row in in_order)
    save({"faults": faults, "kinds": KINDS, "scenarios": in_order}, path)


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {row["scenario"]: row for row in known.get("scenarios", ())}


class _Progress:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0.0

    def __call__(self, found: Injected) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            done = ", ".join(f"{kind} {count}" for kind, count in found.faults.items())
            text = f"{found.scenario}: {found.seconds:.0f} s, {found.chosen} calls; {done}\n"
            sys.stderr.write(text)
            _save(found, self._path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenario", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--resume", action="store_true", help="go on with an earlier run")
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    unknown = set(arguments.scenario) - set(SCENARIOS)
    if unknown:
        parser.error(f"unknown scenarios: {', '.join(sorted(unknown))}")
    run(arguments.scenario or list(SCENARIOS), arguments.json, resume=arguments.resume)


if __name__ == "__main__":
    main()
