"""Reference outputs: computed by PyTorch, recorded into a package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines import SessionBase
from sdexport.engines.array_files import MAX_UNPACKED
from sdexport.engines.errors import MissingDependencyError
from sdexport.engines.session import Feeds
from sdexport.graphs.wrappers import Part
from sdexport.runtime import schedulers
from sdexport.runtime.models.components import (
    ATTENTION_MASK,
    INPUTS_EMBEDS,
    TOKEN_EMBEDDING,
    lora_graph,
)
from sdexport.runtime.models.text_layers import PROJECTED
from sdexport.runtime.schedulers import canonical_name
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.verification.float32_outputs import float32_differences
from sdexport.verification.replay import LARGEST_SIDE

PROMPT = "a photograph of a red bird on a blue chair"
NEGATIVE_PROMPT = "blurry"
STEPS = 4
GUIDANCE_SCALE = 7.5
SEED = 20260101
RECORDED_SIZES: Mapping[str, int] = {
    "batch": 2,
    "sequence": 77,
    "height": 10,
    "width": 13,
    "image_height": 80,
    "image_width": 104,
}
"""Of recorded inputs; odd on purpose, so that an axis that is not dynamic is noticed."""
_MASKED = slice(2, 5)
"""Tokens of a prompt that are masked in the reference of the graph with an attention mask."""


class TorchSession(SessionBase):
    """A component's PyTorch module as a Session.

    Args:
      part: gives the names and shapes.
      module: the module of the checkpoint that `part` wraps.
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
    """A tensor that shares the array's memory if PyTorch can read it in place, else a copy."""
    shared = value.flags.c_contiguous and value.flags.writeable
    return torch.from_numpy(value if shared else np.array(value, order="C"))


def record_component(
    session: TorchSession,
    part: Part,
    path: Path,
    input_ids: np.ndarray | None = None,
    *,
    further: Feeds | None = None,
) -> None:
    """Write the inputs and PyTorch's outputs of one component.

    Args:
      input_ids: (2, S) int64 ids of real prompts, for text encoders; random ids would not do.
      further: inputs that PyTorch's module does not have.
    """
    example = part.example(dict(RECORDED_SIZES), SEED)
    feeds = {name: tensor.numpy() for name, tensor in example.items()}
    if input_ids is not None:
        feeds["input_ids"] = input_ids
    outputs = session.run(feeds)
    arrays = {f"input.{name}": value for name, value in {**feeds, **(further or {})}.items()}
    write_arrays(path, arrays | {f"output.{name}": value for name, value in outputs.items()})


def record_token_graphs(
    session: TorchSession,
    text_encoder: Any,
    folder: Path,
    input_ids: np.ndarray,
    *,
    lora: Feeds | None = None,
) -> None:
    """Write the inputs and PyTorch's outputs of a text encoder's further graphs.

    The token embeddings of each prompt are mixed with those of the other; or the attention to some
    tokens is masked.

    Args:
      input_ids: (2, S) int64.
      lora: factors that have been added to the text encoder; its graphs that take them are recorded
        then.
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
    mask = np.ones_like(input_ids)
    mask[:, _MASKED] = 0
    hook = text_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, ATTENTION_MASK: torch.from_numpy(mask)}),
        with_kwargs=True,
    )
    try:
        masked = session.run({"input_ids": input_ids})
    finally:
        hook.remove()
    whole = [spec.name for spec in session.outputs[:2]]  # the other layers come before them
    recorded = {
        TOKEN_EMBEDDING: {f"output.{INPUTS_EMBEDS}": embeds.numpy()},
        INPUTS_EMBEDS: {f"input.{INPUTS_EMBEDS}": mixed.numpy()}
        | {f"output.{name}": outputs[name] for name in whole},
        ATTENTION_MASK: {f"input.{ATTENTION_MASK}": mask}
        | {f"output.{name}": masked[name] for name in whole},
    }
    if lora is not None:
        del recorded[TOKEN_EMBEDDING]  # which has no layers
    factors = {f"input.{name}": value for name, value in (lora or {}).items()}
    for name, arrays in recorded.items():
        graph = f"{session.name}.{name}"
        path = folder / f"{graph if lora is None else lora_graph(graph)}.npz"
        write_arrays(path, {"input.input_ids": input_ids} | arrays | factors)


def record_float32_outputs(folder: Path, precisions: Mapping[str, str]) -> None:
    """Add what graphs of a lower precision compute in float32 to their reference outputs.

    Nothing is added where ONNX Runtime is not installed.

    Args:
      folder: of the package, with every graph and the reference outputs.
      precisions: of each component.
    """
    for path in sorted((folder / "reference").glob("*.npz")):
        if precisions.get(path.stem.partition(".")[0], "fp32") != "fp32":
            with np.load(path, allow_pickle=False) as data:
                arrays = dict(data)
            try:
                write_arrays(path, arrays | float32_differences(folder, path.stem, arrays))
            except MissingDependencyError:
                return


class ImageRecorder:
    """Generates one image with PyTorch and diffusers' scheduler, one component at a time.

    Call `start` if `starts_from_image`, then `encode` for each text encoder, `denoise` and
    `decode`, each with the module that it needs, so that only one module is in memory at a time.

    Args:
      tokenizers: for each text encoder.
    """

    def __init__(self, checkpoint: Checkpoint, tokenizers: Mapping[str, ClipTokenizer]) -> None:
        self._checkpoint, self._tokenizers = checkpoint, tokenizers
        self.scheduler_name = _deterministic(checkpoint.scheduler_config)
        self._family = checkpoint.family
        self._guided = not self._family.guidance_embedding
        unit = checkpoint.downscale
        most = LARGEST_SIDE // unit
        self._cells = tuple(min(side, most) for side in checkpoint.sample_size)
        self._size = tuple(side * unit for side in self._cells)
        self._embeds: list[torch.Tensor] = []
        self._pooled = torch.empty(0)
        self._arrays: dict[str, np.ndarray] = {}
        self._generator = torch.Generator().manual_seed(SEED)
        self._original: torch.Tensor | None = None
        self._mask_channels: list[torch.Tensor] = []

    @property
    def starts_from_image(self) -> bool:
        """Whether the image is generated from another one."""
        return self._family.starts_from_image

    def start(self, vae: Any) -> None:
        """Draw noise and encode the input image, in the order in which diffusers draws."""
        image = _coloured(self._size)
        self._arrays["image"] = image
        sample = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        self._arrays["strength"] = np.array(0.5 if self._family.refines else 1.0)
        if self._family.refines:
            self._original = self._encoded(vae, sample)
            self._noise = self._draw()
            return
        mask = np.zeros(self._size, np.uint8)
        mask[self._size[0] // 4 :, : self._size[1] // 2] = 255
        self._arrays["mask"] = mask
        self._noise = self._draw()
        covered = torch.from_numpy(mask)[None, None].float() / 255
        unit = self._checkpoint.downscale
        self._mask_channels = [
            covered[:, :, ::unit, ::unit],
            self._encoded(vae, sample * (covered < 0.5)),
        ]

    def input_ids(self, part: str) -> np.ndarray:
        """The ids of the negative prompt and the prompt for a text encoder, (2, S) int64."""
        return self._tokenizers[part]([NEGATIVE_PROMPT, PROMPT])

    def encode(self, part: str, text_encoder: TorchSession) -> None:
        """Compute the embeddings of both prompts with the text encoder `part`."""
        result = text_encoder.run({"input_ids": self.input_ids(part)})
        layers = self._checkpoint.configs[part].num_hidden_layers
        output = self._family.text_layers.reference(layers)
        self._embeds.append(torch.from_numpy(result[output]))
        self._pooled = torch.from_numpy(result.get(PROJECTED, np.empty(0)))

    def denoise(self, unet: Any) -> None:
        """Run the scheduler's steps; draws the noise unless `start` has."""
        class_ = getattr(diffusers, schedulers.class_name(self.scheduler_name))
        scheduler = class_.from_config(dict(self._checkpoint.scheduler_config))
        scheduler.set_timesteps(STEPS)
        if not self.starts_from_image:
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
        embeds, conditioning = self._conditioning(unet)
        with torch.inference_mode():
            for timestep in timesteps:
                rows = torch.cat([latents] * len(embeds))
                sample = scheduler.scale_model_input(rows, timestep)
                masks = [value.expand(len(embeds), -1, -1, -1) for value in self._mask_channels]
                sample = torch.cat([sample, *masks], 1)
                noise_pred = unet(sample, timestep, embeds, **conditioning).sample
                if self._guided:
                    uncond, text = noise_pred.chunk(2)
                    noise_pred = uncond + GUIDANCE_SCALE * (text - uncond)
                latents = scheduler.step(noise_pred, timestep, latents).prev_sample
        self._arrays["denoised"] = latents.numpy()

    def _conditioning(self, unet: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """Embeddings, the negative ones first if there is guidance, and the further arguments."""
        rows = slice(None) if self._guided else slice(1, None)
        added: dict[str, torch.Tensor] = {}
        keywords: dict[str, Any] = {}
        for each in self._family.conditioning:
            value = self._values()[each.name](unet)
            (added if each.added else keywords)[each.name] = value
        embeds = torch.cat(self._embeds, -1)[rows]
        return embeds, keywords | ({"added_cond_kwargs": added} if added else {})

    def _values(self) -> dict[str, Callable[[Any], torch.Tensor]]:
        """How diffusers computes each conditioning input, from the UNet, a row for each embedding.

        Independent of sdexport.runtime.models.conditioning, which these values verify.
        """
        rows = slice(None) if self._guided else slice(1, None)
        return {
            PROJECTED: lambda unet: self._pooled[rows],
            "time_ids": lambda unet: self._time_ids()[rows],
            "timestep_cond": _guidance_embedding,
        }

    def _time_ids(self) -> torch.Tensor:
        size = [float(side) for side in self._size]
        if self._family.refines:
            return torch.tensor([[*size, 0, 0, 2.5], [*size, 0, 0, 6.0]])
        return torch.tensor([[*size, 0, 0, *size]] * 2)

    def decode(self, vae: Any, path: Path) -> None:
        """Decode the latents and write everything that was recorded."""
        with torch.inference_mode():
            latents = torch.from_numpy(self._arrays["denoised"])
            latents = latents / self._checkpoint.vae.scaling_factor
            if (mean_std := self._mean_and_std()) is not None:
                latents = latents * mean_std[1] + mean_std[0]
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
            {k: np.array(v) for k, v in settings.items()} | self._arrays | {"generated": pixels},
        )

    def _draw(self) -> torch.Tensor:
        shape = (1, self._checkpoint.vae.latent_channels, *self._cells)
        return torch.randn(shape, generator=self._generator)

    def _encoded(self, vae: Any, sample: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            result = vae.encode(sample)
            if hasattr(result, "latents"):
                latents = result.latents
            else:
                latents = result.latent_dist.mean + result.latent_dist.std * self._draw()
            if (mean_std := self._mean_and_std()) is not None:
                latents = (latents - mean_std[0]) / mean_std[1]
            return latents * self._checkpoint.vae.scaling_factor

    def _mean_and_std(self) -> list[torch.Tensor] | None:
        """Of the VAE's latents, if its configuration has them, (1, C, 1, 1) each."""
        config = self._checkpoint.vae
        if getattr(config, "latents_mean", None) is None:
            return None
        numbers = (config.latents_mean, config.latents_std)
        return [torch.tensor(each).reshape(1, -1, 1, 1) for each in numbers]


def _guidance_embedding(unet: Any) -> torch.Tensor:
    embed = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
    scale = torch.tensor([GUIDANCE_SCALE - 1])
    embedding: torch.Tensor = embed(None, scale, embedding_dim=unet.config.time_cond_proj_dim)
    return embedding


def _coloured(size: Sequence[int]) -> np.ndarray:
    """An image (H, W, 3) uint8 of soft colors."""
    down, across = np.mgrid[0 : size[0], 0 : size[1]].astype(float)
    waves = [np.sin(down / 23 + k) * np.cos(across / (17 + 5 * k)) for k in range(3)]
    return np.rint(127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


def random_signs(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Numbers that are 1 or -1: weights of adapters that take little room when compressed."""
    return 2.0 * torch.randint(0, 2, tuple(shape), generator=generator) - 1.0


_HEADER = 1024
"""Bytes of the header of an array in an .npz file, at most."""


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file; the same arrays give the same bytes.

    It is compressed, unless its arrays have more bytes than are read from a compressed file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(array.nbytes + _HEADER for array in arrays.values())
    save = np.savez_compressed if size <= MAX_UNPACKED else np.savez
    save(path, allow_pickle=False, **dict(arrays))


def _deterministic(scheduler_config: Mapping[str, Any]) -> str:
    """The checkpoint's own scheduler, or DDIM if it is unknown here or draws noise in its steps."""
    name = canonical_name(str(scheduler_config.get("_class_name", ""))) or "ddim"
    sampler = schedulers.create(name, scheduler_config, STEPS)
    return "ddim" if any(map(sampler.takes_noise, range(len(sampler.timesteps)))) else name
