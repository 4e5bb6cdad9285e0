"""Generate images with diffusers, as a user's script would; see start_common.py."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from start_common import save, settings, task

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    given = task()
    dtype = TYPES[given["precision"]]
    pipe = StableDiffusionPipeline.from_pretrained(
        given["model"], torch_dtype=dtype, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    for image in given["images"]:
        # references for libraries that know no other spacing follow the timed images
        options = {"timestep_spacing": image["spacing"]} if "spacing" in image else {}
        pipe.scheduler = EulerDiscreteScheduler.from_config(config, **options)
        result = pipe(
            image["prompt"],
            **settings(given),
            latents=torch.from_numpy(np.load(image["latents"])).to(dtype),
        )
        save(result.images[0], image["output"])


if __name__ == "__main__":
    main()
