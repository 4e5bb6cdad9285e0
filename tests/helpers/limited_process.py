"""Calls with hostile files in a process of their own: the error, the time and the memory of each.

    found = outcomes([("sdexport.runtime.images.loading:load_image", path)])

Every call runs in a forked copy of one process that has imported the functions, so that its peak
is its own. Memory above BACKSTOP_MB ends the copy instead of the machine.
"""

from __future__ import annotations

import importlib
import json
import operator
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BACKSTOP_MB = 3000
"""Address space that a call may take on top of what the process has."""
MALFORMED_MB = 200
"""What a malformed file may take, resident: the bound of every reader."""
MALFORMED_SECONDS = 1
"""How long a malformed file may take on an idle core."""


@dataclass(frozen=True)
class Outcome:
    """What a call did.

    kind: class of its error, or "" if it returned. text: the error, or what it returned.
    seconds: of processor time. grown_mb: peak of resident memory above that before the call.
    """

    kind: str
    text: str
    seconds: float
    grown_mb: float


def outcomes(calls: Sequence[tuple[str, Path | str]]) -> list[Outcome]:
    """Call each function ("module:name") with its path, one after the other."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system, so memory cannot be measured")
    requests = json.dumps([[name, str(path)] for name, path in calls])
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.helpers.limited_process"],
        input=requests,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [Outcome(*each) for each in json.loads(result.stdout.splitlines()[-1])]


def assert_malformed(found: Outcome, kind: str, *, mb: float = MALFORMED_MB) -> None:
    """The call failed with one line of the documented error, in time and within the memory."""
    assert found.kind == kind, found
    assert "\n" not in found.text and found.text.isprintable(), found
    assert found.grown_mb < mb, found
    assert found.seconds < MALFORMED_SECONDS, found


def _peak_mb() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def _called(function: Any, path: str) -> list[Any]:
    import resource

    used = _peak_mb()
    limit = int((used + BACKSTOP_MB + 2000) * 1e6)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    started = time.process_time()
    try:
        kind, text = "", repr(function(Path(path)))[:300]
    except BaseException as error:  # noqa: BLE001  the test looks at it
        kind, text = type(error).__name__, str(error)
    return [kind, text, time.process_time() - started, _peak_mb() - used]


def _forked(function: Any, path: str) -> list[Any]:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        try:
            with os.fdopen(write, "w", encoding="utf-8") as pipe:
                json.dump(_called(function, path), pipe)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if answer else ["killed", f"status {status}", 0.0, 0.0]


def _main() -> None:
    functions: dict[str, Any] = {}
    found = []
    calls = json.load(sys.stdin)
    for name, _ in calls:
        module, _, attribute = name.partition(":")
        functions[name] = operator.attrgetter(attribute)(importlib.import_module(module))
    for name, path in calls:
        found.append(_forked(functions[name], path))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    _main()
