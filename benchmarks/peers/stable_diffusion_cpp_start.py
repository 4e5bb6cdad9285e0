"""Generate images with stable-diffusion.cpp, in the build of cyllama; see start_common.py."""

from __future__ import annotations

from pathlib import Path

from cyllama.sd import RngType, SampleMethod, Scheduler, SDContext, SDContextParams
from start_common import save, task


def main() -> None:
    given = task()
    params = SDContextParams()
    params.model_path = str(Path(given["model"]) / "model.safetensors")
    params.rng_type = params.sampler_rng_type = RngType.CPU  # PyTorch's noise
    with SDContext(params) as context:
        for image in given["images"]:
            (result,) = context.generate(
                image["prompt"],
                negative_prompt="",
                width=given["size"],
                height=given["size"],
                seed=image["seed"],
                sample_steps=given["steps"],
                cfg_scale=given["guidance_scale"],
                sample_method=SampleMethod.EULER,
                scheduler=Scheduler.DISCRETE,
            )
            save(result.to_pil(), image["output"])


if __name__ == "__main__":
    main()
