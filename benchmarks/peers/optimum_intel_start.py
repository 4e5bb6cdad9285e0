"""Generate images with Optimum Intel's OpenVINO pipeline; see start_common.py."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from optimum.intel import OVStableDiffusionPipeline
from start_common import save, settings, task

HINTS = {"fp32": "f32", "bf16": "bf16"}


def main() -> None:
    given = task()
    pipe = OVStableDiffusionPipeline.from_pretrained(
        given["model"],
        ov_config={
            "INFERENCE_PRECISION_HINT": HINTS[given["precision"]],
            "CACHE_DIR": given["cache"],
        },
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    for image in given["images"]:
        result = pipe(
            image["prompt"],
            **settings(given),
            latents=torch.from_numpy(np.load(image["latents"])),
        )
        save(result.images[0], image["output"])


if __name__ == "__main__":
    main()
