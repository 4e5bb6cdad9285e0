"""PyTorch's own answers: recorded into a package, and served behind the Session protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from engines import SessionBase
from engines.session import Feeds
from runtime import ClipTokenizer, schedulers
from runtime.schedulers import canonical_name
from sdexport.components import Part

PROMPT = "a photograph of a red bird on a blue chair"
NEGATIVE_PROMPT = "blurry"
STEPS = 4
GUIDANCE_SCALE = 7.5
SEED = 20260101
LARGEST_SIDE = 256


class TorchSession(SessionBase):
    """A component's PyTorch module as a Session.

    Args:
      part: names and shapes.
      module: the module of the checkpoint that the part wraps.
    """

    def __init__(self, part: Part, module: Any) -> None:
        super().__init__(part.name, part.inputs, part.outputs)
        self._module = part.wrap(module).eval()

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        tensors = {name: _tensor(value) for name, value in feeds.items()}
        with torch.inference_mode():
            result = self._module(**tensors)
        values = result if isinstance(result, tuple) else (result,)
        return {spec.name: value.numpy() for spec, value in zip(self.outputs, values, strict=True)}

    def _release(self) -> None:
        del self._module


def _tensor(value: np.ndarray) -> torch.Tensor:
    """The array itself where PyTorch can read it in place, else a copy."""
    shared = value.flags.c_contiguous and value.flags.writeable
    return torch.from_numpy(value if shared else np.array(value, order="C"))


def record_component(
    session: TorchSession, part: Part, path: Path, input_ids: np.ndarray | None = None
) -> None:
    """Write inputs and PyTorch's outputs of one component.

    The sizes are uneven on purpose: an axis that is not really dynamic shows.

    Args:
      input_ids: real prompts for the text encoder, which random ids would not stand for.
    """
    sizes = {
        "batch": 2,
        "sequence": 77,
        "height": 10,
        "width": 13,
        "image_height": 80,
        "image_width": 104,
    }
    feeds = {name: tensor.numpy() for name, tensor in part.example(sizes, SEED).items()}
    if input_ids is not None:
        feeds["input_ids"] = input_ids
    outputs = session.run(feeds)
    arrays = {f"input.{name}": value for name, value in feeds.items()}
    write_arrays(path, arrays | {f"output.{name}": value for name, value in outputs.items()})


class PictureRecorder:
    """Paints one picture with PyTorch and diffusers' scheduler, a component at a time.

    Call `encode`, `denoise` and `decode` in this order, each with the component of that moment, so
    that never two of them are in memory.
    """

    def __init__(self, scheduler_config: Mapping[str, Any], tokenizer: ClipTokenizer) -> None:
        self.scheduler_name = _deterministic(scheduler_config)
        self._config = scheduler_config
        self._tokenizer = tokenizer
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def input_ids(self) -> np.ndarray:
        return self._tokenizer([NEGATIVE_PROMPT, PROMPT])

    def encode(self, text_encoder: TorchSession) -> None:
        result = text_encoder.run({"input_ids": self.input_ids})
        self._embeds = torch.from_numpy(result["last_hidden_state"])

    def denoise(self, unet: Any, shape: tuple[int, ...]) -> None:
        """shape: (1, C, H/8, W/8) of the latents."""
        class_ = getattr(diffusers, schedulers.class_name(self.scheduler_name))
        scheduler = class_.from_config(dict(self._config))
        scheduler.set_timesteps(STEPS)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
        latents = noise * scheduler.init_noise_sigma
        with torch.inference_mode():
            for timestep in scheduler.timesteps:
                sample = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
                both = unet(sample, timestep, self._embeds).sample
                noise_pred_uncond, noise_pred_text = both.chunk(2)
                noise_pred = noise_pred_uncond + GUIDANCE_SCALE * (
                    noise_pred_text - noise_pred_uncond
                )
                latents = scheduler.step(noise_pred, timestep, latents).prev_sample
        self._arrays |= {"latents": noise.numpy(), "denoised": latents.numpy()}

    def decode(self, vae: Any, scaling_factor: float, path: Path) -> None:
        """Decode the picture and write everything."""
        with torch.inference_mode():
            latents = torch.from_numpy(self._arrays["denoised"]) / scaling_factor
            sample = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        pixels = (sample.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
        settings = {
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE_PROMPT,
            "scheduler": self.scheduler_name,
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE_SCALE,
        }
        write_arrays(
            path,
            {k: np.array(v) for k, v in settings.items()} | self._arrays | {"picture": pixels},
        )


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz that has the same bytes for the same arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **dict(arrays))


def _deterministic(scheduler_config: Mapping[str, Any]) -> str:
    """The checkpoint's own scheduler, or DDIM if it is unknown here or adds noise on its way."""
    name = canonical_name(str(scheduler_config.get("_class_name", ""))) or "ddim"
    sampler = schedulers.create(name, scheduler_config, STEPS)
    return "ddim" if any(map(sampler.takes_noise, range(len(sampler.timesteps)))) else name
