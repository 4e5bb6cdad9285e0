"""OpenVINO GenAI's Text2ImagePipeline as a worker, on graphs that Optimum Intel exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from common import opened, run
from genai_latents import SCHEDULERS, FixedLatents

from sdexport.engines.process_memory import timed


class GenAIWorker:
    def open(
        self, model: str, precision: str = "f32", threads: int | None = None
    ) -> dict[str, Any]:
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        self.pipe = genai.Text2ImagePipeline(model, "CPU", **options)
        self.config = Path(model) / "scheduler" / "scheduler_config.json"
        return opened([], "openvino", "openvino-genai")

    def component(self, name: str, feeds: str, output: str | None = None) -> dict[str, Any]:
        raise NotImplementedError(f"GenAI gives no access to {name} alone")

    def image(
        self, arguments: dict[str, Any], latents: str, output: str | None = None
    ) -> dict[str, Any]:
        own = {k: v for k, v in arguments.items() if k not in ("scheduler", "seed")}
        noise, prompt = np.load(latents), own.pop("prompt")
        scheduler = SCHEDULERS[arguments["scheduler"]]
        self.pipe.set_scheduler(genai.Scheduler.from_config(self.config, scheduler))

        def generate() -> np.ndarray:
            result = self.pipe.generate(prompt, generator=FixedLatents(noise), **own)
            return result.data[0].copy()

        pixels, measured = timed(generate)
        if output:
            np.save(output, pixels)
        return measured


def prepare(checkpoint: Path, folder: Path) -> None:
    """Export with Optimum Intel in float32, and add the tokenizer as a graph."""
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVStableDiffusionPipeline
    from transformers import AutoTokenizer

    pipe = OVStableDiffusionPipeline.from_pretrained(
        checkpoint, export=True, compile=False, load_in_8bit=False
    )
    pipe.save_pretrained(folder)
    tokenizer = convert_tokenizer(AutoTokenizer.from_pretrained(checkpoint / "tokenizer"))
    ov.save_model(tokenizer, folder / "tokenizer" / "openvino_tokenizer.xml")
    # the saved configuration spells out defaults of another scheduler, which would apply to LMS
    path = Path("scheduler") / "scheduler_config.json"
    values = json.loads((checkpoint / path).read_text(encoding="utf-8"))
    (folder / path).write_text(json.dumps(values | {"_class_name": "LMSDiscreteScheduler"}))


if __name__ == "__main__":
    run(GenAIWorker(), prepare)
