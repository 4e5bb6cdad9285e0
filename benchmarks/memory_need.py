"""Memory that commands need, as estimated beforehand and as measured.

    python -m benchmarks.memory_need PACKAGE [--size 256] [--backend NAME[,OPTION=VALUE...]]
                                     [--command generate|verify|build|float32] [--low-memory]
                                     [--precision f32] [--prepared DIR] [--json FILE]

Writes a row of the JSON file, in place of an earlier one of the same: the bytes and configurations
from which the estimate is made, the measured peak, and the estimate. The user's cache is off.
"float32" is the session alone with which a verification computes the denoiser in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.full_size import measure
from sdexport.bench.workload import PROMPT
from sdexport.commands.memory_check import verification_calls
from sdexport.runtime.component_backends import parse_backends
from sdexport.runtime.component_memory import Call
from sdexport.runtime.memory_need import build_need, image_calls, memory_need
from sdexport.runtime.packages.package import Package

COMMANDS = ("generate", "verify", "build", "float32")
_IN_FLOAT32 = """
import sys
import numpy as np
from sdexport.engines.ort.float32_session import open_float32
with np.load(sys.argv[2]) as arrays, open_float32(sys.argv[1]) as session:
    session.run({spec.name: arrays[f"input.{spec.name}"] for spec in session.inputs})
"""
"""Computes a graph in float32 on its reference inputs."""


def estimate(
    package: Package,
    command: str,
    size: int,
    backend: str,
    low_memory: bool,
    *,
    prepared: Path | None = None,
    precision: str | None = None,
) -> int | None:
    """The estimated peak of a command, in bytes.

    Args:
      prepared: where graphs are that are prepared. precision: of a build for OpenVINO.
    """
    if command == "build":
        return build_need(package, (), backend, precision=precision)
    if command == "float32":
        calls = [Call(package.family.denoiser, 2, 8, 8, in_float32=True)]
    elif command == "verify":
        calls = verification_calls(package)
    else:
        refines = package.family.starts_from_image
        calls = image_calls(package, width=size, height=size, from_image=refines)
    options: dict[str, Any] = {"engine_dir": prepared} if prepared else {}
    if command == "generate":
        options["expected_images"] = 1
    spec = parse_backends([backend])
    return memory_need(package, calls, spec, options=options, low_memory=low_memory)


def run(
    folder: Path,
    command: str,
    size: int,
    backend: str,
    low_memory: bool,
    *,
    prepared: Path | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """The row of one command; for the arguments see `estimate`."""
    os.environ["SDEXPORT_CACHE"] = "off"
    package = Package.load(folder, verify=False)
    options = {"prepared": prepared, "precision": precision}
    need = estimate(package, command, size, backend, low_memory, **options)
    with tempfile.TemporaryDirectory() as scratch:
        further: list[object] = ["--backend", backend, "--ignore-memory"]
        if command == "build":
            further += ["--engine-dir", scratch]
            if backend == "openvino":
                further += ["--precision", precision or "f32"]
                further += ["--height", size, "--width", size]
        elif low_memory:
            further += ["--low-memory"]
        if prepared:
            further += ["--engine-dir", prepared]
        if command == "generate":
            further += [PROMPT, "-o", Path(scratch) / "image.png", "--steps", 2, "--seed", 0]
            if package.family.starts_from_image:
                source = Path(scratch) / "input.png"
                Image.linear_gradient("L").convert("RGB").resize((size, size)).save(source)
                further += ["--image", source, "--strength", 1]
            else:
                further += ["--size", f"{size}x{size}"]
        if command == "float32":
            name = package.family.denoiser
            files = package.model_path(name), folder / "reference" / f"{name}.npz"
            peak = measure("-c", _IN_FLOAT32, *files)["peak_gb"]
        else:
            peak = measure("-m", "sdexport", command, folder, *further)["peak_gb"]
    stored = {
        name: sum(f.stat().st_size for f in (folder / name).iterdir() if f.is_file())
        for name in package.manifest.components
    }
    return {
        "family": package.manifest.family,
        "precision": {n: c.precision for n, c in package.manifest.components.items()},
        "stored": stored,
        "configs": {name: package.config(name) for name in stored},
        "graphs": package.graphs,
        "command": command,
        "size": size,
        "backend": backend,
        "low_memory": low_memory,
        "prepared": prepared is not None,
        "build_precision": precision,
        "peak_gb": peak,
        "estimate_gb": None if need is None else round(need / 1e9, 2),
    }


def _key(row: dict[str, Any]) -> tuple[object, ...]:
    """What tells rows apart."""
    names = ("family", "precision", "command", "size", "backend", "low_memory")
    options = row.get("prepared", False), row.get("build_precision")
    return (*(json.dumps(row[name], sort_keys=True) for name in names), *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.memory_need")
    parser.add_argument("package", type=Path)
    parser.add_argument("--size", type=int, default=256, help="width and height in pixels")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--command", choices=COMMANDS, default="generate")
    parser.add_argument("--low-memory", action="store_true")
    parser.add_argument("--precision", help="of a build for OpenVINO")
    parser.add_argument("--prepared", type=Path, help="folder of prepared graphs to use")
    parser.add_argument("--json", type=Path, help="add the row to this file")
    args = parser.parse_args()
    row = run(
        args.package,
        args.command,
        args.size,
        args.backend,
        args.low_memory,
        prepared=args.prepared,
        precision=args.precision,
    )
    shown = ("family", "command", "size", "backend", "low_memory", "peak_gb", "estimate_gb")
    print({key: row[key] for key in shown})
    if args.json:
        rows = json.loads(args.json.read_text()) if args.json.exists() else []
        by_key = {_key(other): other for other in rows} | {_key(row): row}  # in their order
        args.json.write_text(json.dumps([*by_key.values()], indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
