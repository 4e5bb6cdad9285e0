"""Generate images with OpenVINO GenAI's Text2ImagePipeline; see start_common.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino_genai as genai
from genai_latents import SCHEDULERS, FixedLatents
from PIL import Image
from start_common import save, settings, task

HINTS = {"fp32": "f32", "bf16": "bf16"}


def main() -> None:
    given = task()
    options = {"INFERENCE_PRECISION_HINT": HINTS[given["precision"]], "CACHE_DIR": given["cache"]}
    pipe = genai.Text2ImagePipeline(given["model"], "CPU", **options)
    config = Path(given["model"]) / "scheduler" / "scheduler_config.json"
    pipe.set_scheduler(genai.Scheduler.from_config(config, SCHEDULERS["euler"]))
    for image in given["images"]:
        result = pipe.generate(
            image["prompt"],
            **settings(given),
            generator=FixedLatents(np.load(image["latents"])),
        )
        save(Image.fromarray(result.data[0]), image["output"])


if __name__ == "__main__":
    main()
