"""Running kept inputs and random ones without Atheris: python -m tests.fuzz.replay TARGET [FILE...]

Prints what goes wrong with each file, or with the corpus and COUNT mutations of it.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.harness import Checker, Finding, Target, report
from tests.fuzz.targets import target

CORPUS = Path(__file__).parent / "corpus"


def kept(name: str) -> list[Path]:
    """The kept inputs of a target."""
    return sorted(path for path in (CORPUS / name).glob("*") if path.is_file())


def mutations(found: Target, count: int, seed: int = 0) -> Iterator[bytes]:
    """Inputs that are made from the kept ones, and from each other; the same ones each time."""
    rng = random.Random(f"{found.name} {seed}")
    pool = [path.read_bytes() for path in kept(found.name)]
    for _ in range(count):
        data = found.mutate(rng.choice(pool), rng)[: found.longest]
        if rng.random() < 0.1:
            pool.append(data)
        yield data


def findings(checker: Checker, inputs: Iterator[bytes]) -> dict[str, Finding]:
    """What goes wrong, by signature."""
    found: dict[str, Finding] = {}
    for data in inputs:
        finding = checker.check(data)
        if finding is not None:
            found.setdefault(finding.signature, finding)
    return found


def main() -> None:
    name, *rest = sys.argv[1:]
    checker = Checker(target(name), Path(tempfile.mkdtemp(prefix="fuzz-")))
    if rest and not rest[0].isdecimal():
        inputs = iter([Path(file).read_bytes() for file in rest])
    else:
        inputs = mutations(checker.target, int(rest[0]) if rest else 1000)
        found = findings(checker, iter([path.read_bytes() for path in kept(name)]))
        for finding in found.values():
            report(finding)
    for finding in findings(checker, inputs).values():
        report(finding)


if __name__ == "__main__":
    main()
