"""diffusers as a worker: eager or compiled, in float32 or bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common import loaded, opened, run
from diffusers import DiffusionPipeline, LMSDiscreteScheduler

from sdexport.engines.process_memory import timed


class DiffusersWorker:
    def open(
        self,
        model: str,
        dtype: str = "float32",
        channels_last: bool = False,
        compiled: bool = False,
        threads: int | None = None,
    ) -> dict[str, Any]:
        if threads is not None:
            torch.set_num_threads(threads)
        self.dtype = getattr(torch, dtype)
        pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=self.dtype)
        pipe.set_progress_bar_config(disable=True)
        if channels_last:
            pipe.unet.to(memory_format=torch.channels_last)
            pipe.vae.to(memory_format=torch.channels_last)
        if compiled:
            pipe.unet = torch.compile(pipe.unet)
            pipe.vae.decode = torch.compile(pipe.vae.decode)
        self.pipe = pipe
        names = [n for n in ("text_encoder", "text_encoder_2", "unet") if hasattr(pipe, n)]
        return opened([*names, "vae_decoder"], "torch", "diffusers", "transformers")

    def component(self, name: str, feeds: str, output: str | None = None) -> dict[str, Any]:
        tensors = {key: torch.from_numpy(value) for key, value in loaded(feeds).items()}
        with torch.inference_mode():
            outputs, measured = timed(lambda: self._call(name, tensors))
        if output:
            np.savez(output, **outputs)
        return measured

    def _call(self, name: str, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        pipe = self.pipe
        cast = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        if name == "unet":
            added = {k: cast[k] for k in ("text_embeds", "time_ids") if k in cast}
            result = pipe.unet(
                cast["sample"],
                inputs["timestep"],
                cast["encoder_hidden_states"],
                added_cond_kwargs=added or None,
            )
            return {"out_sample": result.sample.float().numpy()}
        if name == "vae_decoder":
            return {"sample": pipe.vae.decode(cast["latent_sample"]).sample.float().numpy()}
        hidden = getattr(pipe, name)(cast["input_ids"]).last_hidden_state
        return {"last_hidden_state": hidden.float().numpy()}

    def image(
        self, arguments: dict[str, Any], latents: str, output: str | None = None
    ) -> dict[str, Any]:
        own = {k: v for k, v in arguments.items() if k not in ("scheduler", "seed")}
        self.pipe.scheduler = LMSDiscreteScheduler.from_config(self.pipe.scheduler.config)
        noise = torch.from_numpy(np.load(latents)).to(self.dtype)
        result, measured = timed(lambda: self.pipe(**own, latents=noise, output_type="np"))
        if output:
            np.save(output, (result.images[0] * 255).round().astype(np.uint8))
        return measured


if __name__ == "__main__":
    run(DiffusersWorker())
