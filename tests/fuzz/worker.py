"""One target under Atheris in a process of its own: python -m tests.fuzz.worker TARGET FOLDER ...

What goes wrong is written to FOLDER/findings, each kind once, and the search goes on. Further
arguments are libFuzzer's; the first positional ones are folders of inputs.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path

ROOM = 8 * 2**30
"""Address space that a process may take in addition, so that nothing harms the machine."""


def main() -> None:
    name, work, *arguments = sys.argv[1:]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import atheris

    with atheris.instrument_imports(include=["sdexport"]):
        from tests.fuzz.targets import target

        found = target(name)
    from tests.fuzz.harness import Checker, report
    from tests.tolerances import FUZZ_SLOWNESS

    findings = Path(work) / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    in_memory = Path("/dev/shm")
    base = in_memory if in_memory.is_dir() and os.access(in_memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=base))
    checker = Checker(found, folder, slowness=FUZZ_SLOWNESS)
    _limit_memory()
    seen: dict[str, int] = {}

    def one_input(data: bytes) -> None:
        finding = checker.check(data)
        if finding is None:
            return
        seen[finding.signature] = seen.get(finding.signature, 0) + 1
        if seen[finding.signature] == 1:
            report(finding)
            (findings / finding.name).write_bytes(data)
            text = json.dumps({"finding": str(finding), "signature": finding.signature})
            (findings / f"{finding.name}.json").write_text(text, encoding="utf-8")

    def mutated(data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, longest))
        return found.mutate(data, rng)[:longest]

    options = [f"-max_len={found.longest}", "-timeout=60", "-rss_limit_mb=6000"]
    atheris.Setup([sys.argv[0], *options, *arguments], one_input, custom_mutator=mutated)
    atheris.Fuzz()


def _limit_memory() -> None:
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
