"""How long Ctrl-C and SIGTERM take to end a command, whatever it does.

    python -m benchmarks.interruption [--times 3] [--only NAME] [--json FILE]

Each command runs on a terminal of its own, which must be as it was afterwards, and must leave no
temporary file. Measure on a quiet machine; two minutes there. Needs a POSIX system. Rows of an
earlier report that are not measured are kept.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.reports import save
from tests.faults.interruptions import INTERRUPTIONS, interrupt_on_terminal

RESULT = Path(__file__).parent / "results" / "interruption.json"
SIGNALS = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
ONCE = "PyTorch traces"
"""Takes long to come to the moment of the signal."""


def measure(what: str, name: str, times: int) -> dict[str, Any]:
    """Interrupt a command several times.

    Raises: RuntimeError: it ended with another status, or left something behind.
    """
    seconds = []
    for _ in range(1 if what == ONCE else times):
        with tempfile.TemporaryDirectory(prefix="sdexport-interruption-") as work:
            ended = interrupt_on_terminal(what, SIGNALS[name], Path(work))
        if problems := ended.problems(SIGNALS[name]):
            raise RuntimeError(f"{what}, {name}: {'; '.join(problems)}")
        seconds.append(ended.seconds)
    return {"what": what, "signal": name, "seconds": seconds}


def run(times: int, only: str, path: Path) -> None:
    """Measure the interruptions whose name contains `only`."""
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cases": []}
    rows = {(row["what"], row["signal"]): row for row in report["cases"]}
    for what in INTERRUPTIONS:
        for name in SIGNALS if only in what else ():
            rows[what, name] = row = measure(what, name, times)
            sys.stderr.write(f"{what}, {name}: {', '.join(f'{s:.2f}' for s in row['seconds'])}\n")
            cases = [rows[w, n] for w in INTERRUPTIONS for n in SIGNALS if (w, n) in rows]
            longest = max(max(each["seconds"]) for each in cases)
            save({"times": times, "longest_seconds": longest, "cases": cases}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3, help="of each command and signal")
    parser.add_argument("--only", default="", help="commands whose name contains this")
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    run(arguments.times, arguments.only, arguments.json)


if __name__ == "__main__":
    main()
