"""Generate one image with diffusers, as a user's script would: CHECKPOINT OUT.png STEPS."""

from __future__ import annotations

import sys

import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(
    sys.argv[1], torch_dtype=torch.float32, local_files_only=True
)
pipe.set_progress_bar_config(disable=True)
pipe(
    "a large red circle on a white background",
    num_inference_steps=int(sys.argv[3]),
    width=128,
    height=128,
    generator=torch.Generator().manual_seed(0),
).images[0].save(sys.argv[2])
