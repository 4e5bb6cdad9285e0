"""Full-size models, from checkpoint to image: seconds and peak memory of every stage.

    python -m benchmarks.full_size --tokenizer DIR [--family sd15|sd2|sdxl|refiner]
                                   [--precision fp32|fp16] [--source fp32|fp16]
                                   [--export-only] [--work DIR] [--json FILE]

Builds the checkpoint, then exports, verifies and generates 256x256 in 2 steps, each in its own
process. Weights are random: shapes and cost are real, the image is meaningless. Peak memory is
resident memory, including pages of memory-mapped files, which the system can reclaim; the anonymous
peak excludes those and is sampled every 20 ms. The refiner gets an input image of that size.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.checkpoints import NAMES, build_checkpoint
from benchmarks.reports import show_and_save
from sdexport.bench.measure import machine
from sdexport.bench.workload import PROMPT

PACKAGES = ("sdexport", "torch", "diffusers", "transformers", "onnx", "onnxruntime", "numpy")
PRECISIONS = ("fp32", "fp16")
INTERVAL = 0.02
EXPORT = """
import json, sys
from sdexport.exporter import export
def progress(component, stage, total):
    print(json.dumps([component, stage]), flush=True)
export(sys.argv[1], sys.argv[2], precision=sys.argv[3], force=True, progress=progress)
"""


class Watched:
    """Peak memory of a process, by stage, until `close`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._status = Path(f"/proc/{process.pid}/status")
        self.stages: list[dict[str, Any]] = []
        self.begin("", "start")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def begin(self, component: str, stage: str) -> None:
        self._end_stage()
        peaks = {"peak_gb": 0.0, "anonymous_gb": 0.0}
        self.stages.append({"component": component, "stage": stage} | peaks)
        self._since = time.perf_counter()

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        self._end_stage()

    def _end_stage(self) -> None:
        if self.stages:
            self.stages[-1]["seconds"] = round(time.perf_counter() - self._since, 1)

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            text = self._status.read_text(encoding="utf-8")
            stage = self.stages[-1]
            for key, field in (("peak_gb", "VmRSS"), ("anonymous_gb", "RssAnon")):
                found = re.search(rf"{field}:\s+(\d+) kB", text)
                now = int(found[1]) * 1024 / 1e9 if found else 0.0
                stage[key] = round(max(stage[key], now), 2)


def measure(*command: object) -> dict[str, Any]:
    """Run a Python command in its own process.

    Returns: seconds; peak_gb of resident and anonymous_gb of anonymous memory; output, the text
      that it printed; and the same for each stage. A line such as ["unet", "trace"] starts one.
    Raises: RuntimeError: the command failed.
    """
    started, output = time.perf_counter(), ""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        watched = Watched(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('["'):
                watched.begin(*json.loads(line))
            else:
                output += line
        watched.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{command[:3]} failed: {errors.read()}{output}")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
        "anonymous_gb": max(stage["anonymous_gb"] for stage in watched.stages),
        "output": output,
        "stages": watched.stages,
    }


def run(
    work: Path,
    tokenizer: Path,
    *,
    family: str = "sd15",
    precision: str = "fp32",
    source: str = "fp32",
    export_only: bool = False,
    low_memory: bool = False,
) -> dict[str, Any]:
    """The report of one model.

    Args:
      work: folder for the checkpoint and the package.
      source: precision of the checkpoint's weights.
      export_only: only export (which verifies) and measure the package.
      low_memory: run `verify` and `generate` with --low-memory.
    """
    checkpoint = work / f"{family}-{source}"
    package = work / f"package-{precision}"
    if not checkpoint.exists():
        build_checkpoint(checkpoint, tokenizer, family, half=source == "fp16")
    exported = measure("-c", EXPORT, checkpoint, package, precision)
    del exported["output"]
    stages, findings = ({}, {}) if export_only else _used(package, family, work, low_memory)
    sizes = {f: f.stat().st_size for f in package.rglob("*") if f.is_file()}
    manifest = json.loads((package / "sdexport.json").read_text(encoding="utf-8"))
    return {
        "model": f"{NAMES[family]} architecture, seeded random weights",
        "family": family,
        "precision": precision,
        "source": source,
        "low_memory": low_memory,
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "package_gb": _gb(sizes.values()),
        "component_gb": {
            name: _gb(size for file, size in sizes.items() if file.parent.name == name)
            for name in manifest["components"]
        },
        "stages": {"export": exported, **stages},
        **findings,
    }


def _used(
    package: Path, family: str, work: Path, low_memory: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cost of `sdexport verify` and `sdexport generate`, and their results."""
    both: tuple[object, ...] = ("--json", "--low-memory") if low_memory else ("--json",)
    arguments: tuple[object, ...] = ("--steps", 2, "--seed", 0, "--force", *both)
    if family == "refiner":
        source = work / "input.png"
        Image.linear_gradient("L").convert("RGB").save(source)
        arguments += ("--image", source, "--strength", 1)
    else:
        arguments += ("--size", "256x256")
    cli = ("-m", "sdexport")
    stages = {
        "verify": measure(*cli, "verify", package, *both),
        "generate": measure(
            *cli, "generate", package, PROMPT, "-o", work / "image.png", *arguments
        ),
    }
    outputs = {name: json.loads(stage.pop("output")) for name, stage in stages.items()}
    for stage in stages.values():
        del stage["stages"]
    return stages, {
        "generate_seconds": outputs["generate"]["images"][0]["seconds"],
        "verified": outputs["verify"]["passed"],
        "checks": [c for c in outputs["verify"]["checks"] if c["output"] != "files"],
    }


def _gb(sizes: Any) -> float:
    return round(sum(sizes) / 1e9, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.full_size")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder with CLIP's own files"
    )
    parser.add_argument("--family", choices=NAMES, default="sd15")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the package")
    parser.add_argument("--source", choices=PRECISIONS, default="fp32", help="of the checkpoint")
    parser.add_argument("--export-only", action="store_true", help="neither verify nor generate")
    parser.add_argument(
        "--low-memory", action="store_true", help="verify and generate with one component at a time"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for checkpoint and package; SD 1.5 9 GB, SDXL 28 GB"
    )
    parser.add_argument("--json", type=Path, help="also write the report here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report = run(
            args.work or Path(scratch),
            args.tokenizer,
            family=args.family,
            precision=args.precision,
            source=args.source,
            export_only=args.export_only,
            low_memory=args.low_memory,
        )
    show_and_save(report, args.json)


if __name__ == "__main__":
    main()
