"""Milliseconds that importing the runtime and starting the command line take, in turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

BARE = "import numpy, PIL.Image, PIL.ImageOps, PIL.PngImagePlugin"
RUNTIME = "from sdexport import ClipTokenizer, TorchGenerator, load_pipeline, save_image"
COMMANDS = {
    "python": ["-c", "pass"],
    "numpy and pillow": ["-c", BARE],
    "runtime": ["-c", f"{BARE}; {RUNTIME}"],
    "help": ["-m", "sdexport", "--help"],
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def measure(rounds: int = 5) -> dict[str, Any]:
    """Medians of each command, and what our part adds: to NumPy and Pillow, and to Python."""
    runs: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, command in COMMANDS.items():
            taken = seconds([sys.executable, *command])
            if number:  # the first round warms the file cache
                runs[name].append(round(taken, 4))
    median = {name: statistics.median(values) for name, values in runs.items()}
    return {
        "import_runtime_over_numpy_and_pillow_ms": round(
            1000 * (median["runtime"] - median["numpy and pillow"]), 1
        ),
        "help_over_python_ms": round(1000 * (median["help"] - median["python"]), 1),
        "median_s": median,
        "runs_s": runs,
    }
