"""Optimum's half, in its own environment: exports checkpoints and generates images from folders.

    python optimum_side.py JOBS.json

JOBS.json is a list of {"do": "export", "checkpoint", "folder"} and {"do": "generate", "class",
"folder", "result", "arguments", "seed"}; paths in "images" are opened and given as arguments. A job
that fails leaves its error's first line in FOLDER.error or RESULT.error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import optimum.onnxruntime
import torch
from optimum.exporters.onnx import main_export
from PIL import Image


def export(job: dict[str, Any]) -> None:
    main_export(
        job["checkpoint"], job["folder"], task="text-to-image", dtype="fp32", do_validation=False
    )


def generate(job: dict[str, Any]) -> None:
    pipeline = getattr(optimum.onnxruntime, job["class"]).from_pretrained(job["folder"])
    pipeline.set_progress_bar_config(disable=True)
    arguments = job["arguments"] | {k: Image.open(v) for k, v in job.get("images", {}).items()}
    generator = torch.Generator().manual_seed(job["seed"])
    images = pipeline(generator=generator, output_type="np", **arguments).images
    np.save(job["result"], (images * 255).round().astype(np.uint8))


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        try:
            {"export": export, "generate": generate}[job["do"]](job)
        except Exception as error:  # noqa: BLE001 - whatever Optimum says is the result
            first = [*str(error).strip().splitlines(), ""][0]
            said = f"{type(error).__name__}: {first}"
            Path(job.get("result", job["folder"]) + ".error").write_text(said)


if __name__ == "__main__":
    main()
