"""PyTorch's own answers: recorded into a package, and served behind the Session protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines import SessionBase
from sdexport.engines.session import Feeds
from sdexport.graphs.wrappers import Part
from sdexport.runtime import schedulers
from sdexport.runtime.packages.package import INPUTS_EMBEDS, TOKEN_EMBEDDING
from sdexport.runtime.schedulers import canonical_name
from sdexport.runtime.text.tokenizer import ClipTokenizer

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


def record_token_graphs(
    session: TorchSession, text_encoder: Any, folder: Path, input_ids: np.ndarray
) -> None:
    """Write inputs and PyTorch's outputs of a text encoder's further graphs.

    The tokens of each prompt are mixed with those of the other.

    Args:
      input_ids: (2, S) int64.
    """
    table = text_encoder.get_input_embeddings()
    with torch.inference_mode():
        embeds = table(torch.from_numpy(input_ids))
        mixed = 0.75 * embeds + 0.25 * embeds.flip(0)
    hook = table.register_forward_hook(lambda *_: mixed)
    try:
        outputs = session.run({"input_ids": input_ids})
    finally:
        hook.remove()
    whole = [spec.name for spec in session.outputs[:2]]  # what is behind the other layers too
    recorded = {
        TOKEN_EMBEDDING: {f"output.{INPUTS_EMBEDS}": embeds.numpy()},
        INPUTS_EMBEDS: {f"input.{INPUTS_EMBEDS}": mixed.numpy()}
        | {f"output.{name}": outputs[name] for name in whole},
    }
    for name, arrays in recorded.items():
        path = folder / f"{session.name}.{name}.npz"
        write_arrays(path, {"input.input_ids": input_ids} | arrays)


class PictureRecorder:
    """Paints one picture with PyTorch and diffusers' scheduler, a component at a time.

    Call `begin` if `begins_with_vae`, then `encode` for each text encoder, `denoise` and `decode`,
    each with the module of that moment, so that never two of them are in memory.

    Args:
      tokenizers: for each text encoder.
    """

    def __init__(self, checkpoint: Checkpoint, tokenizers: Mapping[str, ClipTokenizer]) -> None:
        self._checkpoint, self._tokenizers = checkpoint, tokenizers
        self.scheduler_name = _deterministic(checkpoint.scheduler_config)
        family = checkpoint.family
        self._inpaints, self._refines = "inpainting" in family, "refiner" in family
        self._guided = not checkpoint.configs["unet"].time_cond_proj_dim
        unit = checkpoint.downscale
        most = LARGEST_SIDE // unit
        self._cells = tuple(min(side, most) for side in checkpoint.sample_size)
        self._size = tuple(side * unit for side in self._cells)
        self._embeds: list[torch.Tensor] = []
        self._pooled = torch.empty(0)
        self._arrays: dict[str, np.ndarray] = {}
        self._generator = torch.Generator().manual_seed(SEED)
        self._original: torch.Tensor | None = None
        self._beside: list[torch.Tensor] = []

    @property
    def begins_with_vae(self) -> bool:
        """Whether the picture begins from another one."""
        return self._inpaints or self._refines

    def begin(self, vae: Any) -> None:
        """Draw noise and encode the given picture, in the order in which diffusers draws."""
        picture = _coloured(self._size)
        self._arrays["image"] = picture
        sample = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        self._arrays["strength"] = np.array(0.5 if self._refines else 1.0)
        if self._refines:
            self._original = self._encoded(vae, sample)
            self._noise = self._draw()
            return
        mask = np.zeros(self._size, np.uint8)
        mask[self._size[0] // 4 :, : self._size[1] // 2] = 255
        self._arrays["mask"] = mask
        self._noise = self._draw()
        covered = torch.from_numpy(mask)[None, None].float() / 255
        unit = self._checkpoint.downscale
        self._beside = [
            covered[:, :, ::unit, ::unit],
            self._encoded(vae, sample * (covered < 0.5)),
        ]

    def input_ids(self, part: str) -> np.ndarray:
        return self._tokenizers[part]([NEGATIVE_PROMPT, PROMPT])

    def encode(self, part: str, text_encoder: TorchSession) -> None:
        result = text_encoder.run({"input_ids": self.input_ids(part)})
        if "text_encoder_2" in self._checkpoint.configs:
            layers = self._checkpoint.configs[part].num_hidden_layers
            self._embeds.append(torch.from_numpy(result[f"hidden_states.{layers - 1}"]))
            self._pooled = torch.from_numpy(result.get("text_embeds", np.empty(0)))
        else:
            self._embeds.append(torch.from_numpy(result["last_hidden_state"]))

    def denoise(self, unet: Any) -> None:
        class_ = getattr(diffusers, schedulers.class_name(self.scheduler_name))
        scheduler = class_.from_config(dict(self._checkpoint.scheduler_config))
        scheduler.set_timesteps(STEPS)
        if not self.begins_with_vae:
            self._noise = self._draw()
            self._arrays["latents"] = self._noise.numpy()
        timesteps = scheduler.timesteps
        if self._original is None:
            latents = self._noise * scheduler.init_noise_sigma
        else:
            begin = STEPS // 2 * scheduler.order
            timesteps = timesteps[begin:]
            scheduler.set_begin_index(begin)
            latents = scheduler.add_noise(self._original, self._noise, timesteps[:1])
        embeds, conditions = self._conditions(unet)
        with torch.inference_mode():
            for timestep in timesteps:
                rows = torch.cat([latents] * len(embeds))
                sample = scheduler.scale_model_input(rows, timestep)
                beside = [value.expand(len(embeds), -1, -1, -1) for value in self._beside]
                both = unet(torch.cat([sample, *beside], 1), timestep, embeds, **conditions).sample
                if self._guided:
                    uncond, text = both.chunk(2)
                    both = uncond + GUIDANCE_SCALE * (text - uncond)
                latents = scheduler.step(both, timestep, latents).prev_sample
        self._arrays["denoised"] = latents.numpy()

    def _conditions(self, unet: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """Embeddings, the negative one first if there is guidance, and what else the UNet takes."""
        embeds, pooled = torch.cat(self._embeds, -1), self._pooled
        conditions: dict[str, Any] = {}
        if "text_encoder_2" in self._checkpoint.configs:
            size = [float(side) for side in self._size]
            if self._refines:
                time_ids = torch.tensor([[*size, 0, 0, 2.5], [*size, 0, 0, 6.0]])
            else:
                time_ids = torch.tensor([[*size, 0, 0, *size]] * 2)
            rows = slice(None) if self._guided else slice(1, None)
            conditions["added_cond_kwargs"] = {
                "text_embeds": pooled[rows],
                "time_ids": time_ids[rows],
            }
        if not self._guided:
            embeds = embeds[1:]
            embed = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
            scale = torch.tensor([GUIDANCE_SCALE - 1])
            width = unet.config.time_cond_proj_dim
            conditions["timestep_cond"] = embed(None, scale, embedding_dim=width)
        return embeds, conditions

    def decode(self, vae: Any, path: Path) -> None:
        """Decode the picture and write everything."""
        with torch.inference_mode():
            scaling_factor = self._checkpoint.configs["vae"].scaling_factor
            latents = torch.from_numpy(self._arrays["denoised"]) / scaling_factor
            sample = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        pixels = (sample.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
        settings = {
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE_PROMPT,
            "scheduler": self.scheduler_name,
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE_SCALE,
            "seed": SEED,
        }
        write_arrays(
            path,
            {k: np.array(v) for k, v in settings.items()} | self._arrays | {"picture": pixels},
        )

    def _draw(self) -> torch.Tensor:
        shape = (1, self._checkpoint.configs["vae"].latent_channels, *self._cells)
        return torch.randn(shape, generator=self._generator)

    def _encoded(self, vae: Any, sample: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            result = vae.encode(sample)
            if hasattr(result, "latents"):
                latents = result.latents
            else:
                latents = result.latent_dist.mean + result.latent_dist.std * self._draw()
            return latents * self._checkpoint.configs["vae"].scaling_factor


def _coloured(size: Sequence[int]) -> np.ndarray:
    """A picture (H, W, 3) uint8 of soft colours."""
    down, across = np.mgrid[0 : size[0], 0 : size[1]].astype(float)
    waves = [np.sin(down / 23 + k) * np.cos(across / (17 + 5 * k)) for k in range(3)]
    return np.rint(127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz that has the same bytes for the same arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **dict(arrays))


def _deterministic(scheduler_config: Mapping[str, Any]) -> str:
    """The checkpoint's own scheduler, or DDIM if it is unknown here or adds noise on its way."""
    name = canonical_name(str(scheduler_config.get("_class_name", ""))) or "ddim"
    sampler = schedulers.create(name, scheduler_config, STEPS)
    return "ddim" if any(map(sampler.takes_noise, range(len(sampler.timesteps)))) else name
