"""Time to the first image: imports, and whole processes, in alternating runs.

    python -m benchmarks.startup PACKAGE [--work DIR] [--json FILE]

The import of the runtime is measured relative to NumPy and Pillow alone. The whole process is
`sdexport generate` for 128x128 in 20 steps, with warm disk caches. With --work a script does the
same with diffusers, in the environment that benchmarks.latency uses.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.contenders import python_of
from benchmarks.reports import show_and_save
from sdexport.bench.measure import machine
from sdexport.demo_model import MODEL_DIR

ROUNDS = 5
BARE = "import numpy, PIL.Image, PIL.ImageOps, PIL.PngImagePlugin"
RUNTIME = "from sdexport import ClipTokenizer, TorchGenerator, load_pipeline, save_image"
STEPS = 20


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def measure(
    package: Path, rounds: int = ROUNDS, work: Path | None = None
) -> dict[str, list[float]]:
    """Seconds of each process in each round."""
    with tempfile.TemporaryDirectory() as folder:
        generate = [
            "-m",
            "sdexport",
            "generate",
            str(package),
            "a large red circle on a white background",
        ]
        generate += ["-o", str(Path(folder) / "a.png"), "--steps", str(STEPS), "--size", "128x128"]
        commands = {
            "python": ["-c", "pass"],
            "numpy and pillow": ["-c", BARE],
            "runtime": ["-c", f"{BARE}; {RUNTIME}"],
            "help": ["-m", "sdexport", "--help"],
            "picture": [*generate, "--seed", "0", "--force"],
        }
        commands = {name: [sys.executable, *command] for name, command in commands.items()}
        if work is not None:
            script = Path(__file__).parent / "peers" / "diffusers_image.py"
            first = [python_of("diffusers", work), script, MODEL_DIR, Path(folder) / "b.png", STEPS]
            commands["diffusers picture"] = list(map(str, first))
        runs: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(rounds + 1):
            for name, command in commands.items():
                taken = seconds(command)
                if number:  # the first round warms the disk cache
                    runs[name].append(taken)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.startup")
    parser.add_argument("package", type=Path)
    parser.add_argument(
        "--work",
        type=Path,
        help="folder of the other libraries' environments; measures diffusers too",
    )
    parser.add_argument("--json", type=Path, help="also write the report here")
    args = parser.parse_args()
    runs = measure(args.package, work=args.work and args.work.resolve())
    median = {name: statistics.median(values) for name, values in runs.items()}
    report = {
        "machine": machine(),
        "import_runtime_over_numpy_and_pillow_ms": round(
            1000 * (median["runtime"] - median["numpy and pillow"]), 1
        ),
        "help_over_python_ms": round(1000 * (median["help"] - median["python"]), 1),
        "picture_s": round(median["picture"], 3),
        "median_s": {name: round(value, 4) for name, value in median.items()},
        "runs_s": {name: [round(v, 4) for v in values] for name, values in runs.items()},
    }
    if "diffusers picture" in median:
        report["picture_of_diffusers"] = round(median["picture"] / median["diffusers picture"], 3)
    show_and_save(report, args.json)


if __name__ == "__main__":
    main()
