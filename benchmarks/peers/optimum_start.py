"""Generate images with Optimum's ONNX Runtime pipeline; see start_common.py."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from optimum.onnxruntime import ORTStableDiffusionPipeline
from start_common import save, settings, task


def main() -> None:
    given = task()
    pipe = ORTStableDiffusionPipeline.from_pretrained(given["model"])
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
