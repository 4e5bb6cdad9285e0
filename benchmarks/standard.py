"""The standard set: all reports that the tables and plots are made from, in one command.

    python -m benchmarks.standard --work DIR [--parts latency-256 memory ...] [--plan]

Run it on a machine that does nothing else. Minutes are estimates for two cores; `prepare` runs once
for a work folder. If a part fails, that is reported and the others still run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import arguments
from benchmarks.contenders import CONTENDERS, OURS, python_of
from benchmarks.models import made
from sdexport.engines.errors import WorkerError

CORE = ("diffusers fp32", "sdexport openvino", "diffusers bf16", "diffusers bf16 channels_last")
MOST = (
    *(*CORE, "optimum fp32", "sdexport onnxruntime fp32", "sdexport onnxruntime fp32 prepared"),
    "openvino-genai",
)
MEMORY = (
    *("diffusers fp32", "sdexport openvino fp32", "sdexport onnxruntime", "optimum fp32"),
    *("openvino-genai fp32", "sdexport openvino bf16", "diffusers bf16"),
)
"""Contenders whose memory is measured."""


@dataclass(frozen=True)
class Part:
    """A benchmark with its options.

    Attributes:
      minutes: estimate for two cores.
      standard: whether it belongs to the standard set.
    """

    module: str
    options: tuple[str, ...] = ()
    minutes: float = 1.0
    standard: bool = True


def _only(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for name in names for word in ("--contender", name))


SD15 = ("--model", "sd15")
PARTS = {
    "startup-demo": Part("startup", ("--model", "demo"), 3),
    "startup": Part("startup", SD15, 18),
    "install": Part("install", minutes=0.7),
    "overhead": Part("overhead", minutes=0.2),
    "scaling": Part("scaling", minutes=0.7),
    "latency-embedded": Part("latency", ("--rounds", "6"), 0.9),
    "latency-256": Part(
        "latency",
        (*SD15, "--size", "256", "--rounds", "4", "--minutes", "11", *_only(MOST)),
        13,
    ),
    "latency-512": Part(
        "latency",
        (
            *(*SD15, "--size", "512", "--rounds", "3", "--minutes", "6"),
            *("--images-only", *_only(CORE)),
        ),
        8,
    ),
    "memory": Part("memory", (*SD15, "--size", "256", *_only(MEMORY)), 4),
    "roofline": Part("roofline", SD15, 0.3),
    "operators": Part("operators", (*SD15, "--size", "256"), 0.7),
    "latency-512-all": Part("latency", (*SD15, "--size", "512"), 25, False),
    "compiled-256": Part(
        "latency",
        (
            *(*SD15, "--size", "256", "--rounds", "1", "--slow"),
            *("--contender", "diffusers fp32", "--contender", "sdexport openvino"),
            *("--contender", "diffusers compiled"),
        ),
        12,
        False,
    ),
    "memory-512": Part("memory", (*SD15, "--size", "512"), 6, False),
    "sdxl-unet": Part(
        "latency",
        (
            *("--model", "sdxl-unet", "--rounds", "1"),  # only bf16 leaves room for two
            *("--contender", "sdexport openvino bf16", "--contender", "diffusers bf16"),
        ),
        15,
        False,
    ),
}
PREPARING = 14
"""Minutes to install the other libraries and to export SD 1.5 with each of them, once."""


def plan(names: list[str]) -> str:
    lines = [f"{'prepare, once':18}{PREPARING:5} min"]
    lines += [f"{name:18}{PARTS[name].minutes:5g} min" for name in names]
    return "\n".join([*lines, f"{'total':18}{sum(PARTS[n].minutes for n in names):5g} min"])


def prepare(args: argparse.Namespace) -> None:
    """Create environments and models beforehand, so that no part includes their time."""
    for library in dict.fromkeys(c.library for c in CONTENDERS.values() if c.library != OURS):
        try:
            python_of(library, args.work)
        except WorkerError as error:  # reported for its contenders
            print(error, flush=True)
    for name in ("embedded", "sd15"):
        made(name, args.work, args.tokenizer and Path(args.tokenizer))


def run(name: str, args: argparse.Namespace) -> bool:
    """Whether the part's command succeeded."""
    part = PARTS[name]
    command = [sys.executable, "-m", f"benchmarks.{part.module}", *part.options]
    if part.module == "overhead":
        command += ["--json", str(args.results / f"{part.module}.json")]
    else:
        command += ["--work", str(args.work), "--results", str(args.results)]
        if args.tokenizer:
            command += ["--tokenizer", str(args.tokenizer)]
    started = time.monotonic()
    status = subprocess.run(command).returncode
    minutes = (time.monotonic() - started) / 60
    print(f"== {name}: {minutes:.1f} min, status {status}", flush=True)
    return status == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.standard",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.common(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default the standard set")
    parser.add_argument("--plan", action="store_true", help="print the expected time and exit")
    args = parser.parse_args()
    names = args.parts or [name for name, part in PARTS.items() if part.standard]
    print(plan(names), flush=True)
    if args.plan:
        return
    args.work, args.results = args.work.resolve(), args.results.resolve()
    args.results.mkdir(parents=True, exist_ok=True)
    prepare(args)
    failed = [name for name in names if not run(name, args)]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
