"""Shared code of the scripts that benchmarks.startup times; needs the standard library only.

A script gets one argument, a JSON object: model, a path; precision; size, in pixels; steps;
guidance_scale; images, each with prompt, seed, latents (a .npy file) and output (a .png file);
and cache, an empty or filled folder for whatever the library keeps from process to process.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def task() -> dict[str, Any]:
    """The JSON object on the command line."""
    found: dict[str, Any] = json.loads(sys.argv[1])
    return found


def settings(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call that are the same for every image, as diffusers names them."""
    return {
        "negative_prompt": "",
        "num_inference_steps": given["steps"],
        "guidance_scale": given["guidance_scale"],
        "width": given["size"],
        "height": given["size"],
    }


def save(image: Any, output: str) -> None:
    """Write a Pillow image; the file appears when it is complete."""
    image.save(f"{output}.part", format="PNG")
    os.replace(f"{output}.part", output)
