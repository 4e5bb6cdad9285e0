"""Optimum's ONNX Runtime pipeline as a worker, on graphs that Optimum itself exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import loaded, opened, run
from diffusers import LMSDiscreteScheduler
from optimum.onnxruntime import ORTStableDiffusionPipeline

from sdexport.engines.process_memory import timed


class OptimumWorker:
    def open(self, model: str, threads: int | None = None) -> dict[str, Any]:
        from onnxruntime import SessionOptions

        options = SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
            torch.set_num_threads(threads)
        self.pipe = ORTStableDiffusionPipeline.from_pretrained(model, session_options=options)
        self.pipe.set_progress_bar_config(disable=True)
        packages = ("optimum", "optimum-onnx", "onnxruntime", "diffusers", "torch")
        return opened(["text_encoder", "unet", "vae_decoder"], *packages)

    def component(self, name: str, feeds: str, output: str | None = None) -> dict[str, Any]:
        arrays, part = loaded(feeds), getattr(self.pipe, name, None)
        if part is None:
            part = self.pipe.vae.decoder
        tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
        if "timestep" in tensors:
            tensors["timestep"] = tensors["timestep"][0]
        outputs, measured = timed(lambda: part(**tensors))
        if output:
            key = {"unet": "out_sample", "vae_decoder": "sample"}.get(name, "last_hidden_state")
            np.savez(output, **{key: np.asarray(outputs[0])})
        return measured

    def image(
        self, arguments: dict[str, Any], latents: str, output: str | None = None
    ) -> dict[str, Any]:
        own = {k: v for k, v in arguments.items() if k not in ("scheduler", "seed")}
        self.pipe.scheduler = LMSDiscreteScheduler.from_config(self.pipe.scheduler.config)
        noise = torch.from_numpy(np.load(latents))
        result, measured = timed(lambda: self.pipe(**own, latents=noise, output_type="np"))
        if output:
            np.save(output, (result.images[0] * 255).round().astype(np.uint8))
        return measured


def prepare(checkpoint: Path, folder: Path) -> None:
    pipe = ORTStableDiffusionPipeline.from_pretrained(str(checkpoint), export=True)
    pipe.save_pretrained(folder)


if __name__ == "__main__":
    run(OptimumWorker(), prepare)
