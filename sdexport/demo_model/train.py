"""Train the demo model: `python -m sdexport.demo_model.train --work DIR`.

There are five stages: tokenizer, VAE, latents, then UNet and text encoder together, and the order
of pairs (see `pair_order`). Each can be resumed. Random numbers depend on (seed, stage, step) only,
so a stopped run continues as if it had not been stopped. The VAE is trained on crops of 64x64
first, which take a quarter of the time, then on whole images. The UNet and the text encoder are
trained from scratch on latents that are computed once.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import CLIPTokenizer

from sdexport.demo_model import MODEL_DIR, dataset, pair_order
from sdexport.demo_model import architecture as arch
from sdexport.demo_model.noisy_latents import alphas_cumprod
from sdexport.demo_model.training import (
    Trainer,
    add_common_arguments,
    encode_images,
    seeded,
    to_pixels,
    write_model,
)

VAE_BATCH, VAE_CROP = 16, 64
UNET_BATCH = 64
KL_WEIGHT = 1e-4
CAPTION_DROPOUT = 0.1
SNR_CAP = 5.0
OFFSET_FROM, NOISE_OFFSET = 900, 0.25
"""From this step on the noise has a random mean in each channel, with this standard deviation.

Even the noisiest latents of this schedule show the background's colour in their mean. A model that
learns to read it there ignores the caption, and generates the colour that the initial noise
suggests.
"""
NOISY_SHARES, NOISY_FROM = (0.4, 0.6), 700
"""From the same step on, the share of examples with a timestep of NOISY_FROM or more, where the
caption matters most: in the first cycle, and in the later ones."""


def main() -> None:
    """Train, or resume from the last checkpoint, and write the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m sdexport.demo_model.train"
    )
    add_common_arguments(parser, MODEL_DIR)
    parser.add_argument("--vae-crop-steps", type=int, default=3000)
    parser.add_argument("--vae-steps", type=int, default=4000, help="with the steps on crops")
    parser.add_argument("--scenes", type=int, default=20480)
    parser.add_argument("--unet-cycles", type=int, nargs="+", default=[4000, 1200, 450])
    pair_order.add_arguments(parser)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    vocab_size = arch.write_tokenizer(args.work / "tokenizer")
    vae = train_vae(args)
    latents, input_ids, scale = encode_examples(args, vae)
    unet, text_encoder = train_unet(args, latents, input_ids, vocab_size)
    vae.register_to_config(scaling_factor=scale)
    first = args.work / "first_stages"
    write_model(first, args.work / "tokenizer", vae, unet, text_encoder)
    pair_order.train(args, first, first)


def train_vae(args: argparse.Namespace) -> Any:
    """Train the VAE; returns it with averaged weights, for inference."""
    torch.manual_seed(args.seed)
    modules = torch.nn.ModuleDict({"vae": arch.build_vae()}).to(args.device)
    vae: Any = modules["vae"]
    trainer = Trainer(args.work / "vae.pt", modules, peak=1e-3, ends=(args.vae_steps,))

    def loss_of(step: int) -> tuple[torch.Tensor, str]:
        rng = seeded(args.seed, 1, step)
        pixels = vae_batch(rng, crop=step < args.vae_crop_steps).to(args.device)
        torch.manual_seed(int(rng.integers(2**31)))
        with torch.autocast(args.device, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        l1, l2 = (decoded - pixels).abs().mean(), (decoded - pixels).square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return l1 + l2 + KL_WEIGHT * kl, f"l1 {l1.item():.4f} l2 {l2.item():.5f} kl {kl.item():.2f}"

    return trainer.run(loss_of)["vae"].eval()


def vae_batch(rng: np.random.Generator, *, crop: bool) -> torch.Tensor:
    """(B, 3, H, W) float32, -1..1; every third scene has colours that are not in the palette."""
    images = []
    for i in range(VAE_BATCH):
        scene, _ = dataset.sample_scene(rng)
        image = dataset.render(dataset.recolour(scene, rng) if i % 3 == 0 else scene)
        if crop:
            y, x = rng.integers(0, dataset.IMAGE_SIZE - VAE_CROP + 1, 2)
            image = image[y : y + VAE_CROP, x : x + VAE_CROP]
        images.append(image)
    return to_pixels(np.stack(images))


def encode_examples(args: argparse.Namespace, vae: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Encode captioned scenes, once.

    Returns: posterior mean and deviation (N, 8, 16, 16), token ids (N, 77), and the scaling factor
      that gives the latents a variance of 1.
    """
    path = args.work / "latents.pt"
    if not path.exists():
        tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
        rng = seeded(args.seed, 2)
        scenes, captions = zip(
            *(dataset.sample_scene(rng) for _ in range(args.scenes)), strict=True
        )
        moments = encode_images(vae, map(dataset.render, scenes))
        ids = tokenizer(list(captions), padding="max_length", max_length=arch.MAX_LENGTH).input_ids
        torch.save({"moments": moments, "ids": torch.tensor(ids)}, path)
    data = torch.load(path, weights_only=True)
    mean, std = data["moments"].chunk(2, dim=1)
    variance = mean.var() + std.square().mean()
    print(f"latents: {len(mean)} scenes, std {variance.sqrt():.3f}", flush=True)
    return data["moments"], data["ids"], float(1 / variance.sqrt())


def train_unet(
    args: argparse.Namespace, moments: torch.Tensor, input_ids: torch.Tensor, vocab_size: int
) -> tuple[Any, Any]:
    """Train UNet and text encoder together; returns both with averaged weights.

    Args:
      moments, input_ids: see encode_examples.
    """
    torch.manual_seed(args.seed + 1)
    modules = torch.nn.ModuleDict(
        {"unet": arch.build_unet(), "text_encoder": arch.build_text_encoder(vocab_size)}
    ).to(args.device)
    ends = tuple(itertools.accumulate(args.unet_cycles))
    trainer = Trainer(args.work / "unet.pt", modules, peak=1e-3, ends=ends)
    examples = LatentExamples(moments, input_ids, vocab_size, first_cycle=ends[0])
    unet: Any = modules["unet"]
    text_encoder: Any = modules["text_encoder"]

    def loss_of(step: int) -> tuple[torch.Tensor, str]:
        batch = examples.draw(seeded(args.seed, 3, step), step)
        with torch.autocast(args.device, torch.bfloat16):
            hidden = text_encoder(batch.input_ids.to(args.device)).last_hidden_state
            timesteps = batch.timesteps.to(args.device)
            predicted = unet(batch.sample.to(args.device), timesteps, hidden).sample
        error = (predicted.float().cpu() - batch.noise).square().mean(dim=(1, 2, 3))
        loss = (error * batch.snr.clamp(max=SNR_CAP) / batch.snr).mean()  # arXiv 2303.09556, eq. 6
        high = error[batch.timesteps >= NOISY_FROM].mean().item()
        return loss, f"loss {loss.item():.4f} mse {error.mean().item():.4f} noisy {high:.4f}"

    average = trainer.run(loss_of)
    return average["unet"].eval(), average["text_encoder"].eval()


class Batch(NamedTuple):
    """Noisy latents and their noise (B, 4, 16, 16), timesteps, token ids (B, 77), and the
    signal-to-noise ratio (B)."""

    sample: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    input_ids: torch.Tensor
    snr: torch.Tensor


class LatentExamples:
    """Draws noisy latents with captions.

    Args:
      first_cycle: the step at which the first cycle of the training ends.
    """

    def __init__(
        self, moments: torch.Tensor, input_ids: torch.Tensor, vocab_size: int, *, first_cycle: int
    ) -> None:
        self._mean, self._std = moments.chunk(2, dim=1)
        self._input_ids, self._first_cycle = input_ids, first_cycle
        self._scale = 1 / (self._mean.var() + self._std.square().mean()).sqrt()
        self._alphas_cumprod = alphas_cumprod()
        self._empty = torch.full((arch.MAX_LENGTH,), vocab_size - 1)
        self._empty[0] = vocab_size - 2

    def draw(self, rng: np.random.Generator, step: int) -> Batch:
        """The examples of one training step."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        rows = torch.from_numpy(rng.integers(0, len(self._mean), UNET_BATCH))
        mean, std = self._mean[rows], self._std[rows]
        latents = self._scale * (mean + std * torch.randn(mean.shape, generator=generator))
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (UNET_BATCH,), generator=generator)
        if step >= OFFSET_FROM:
            noise += NOISE_OFFSET * torch.randn(*latents.shape[:2], 1, 1, generator=generator)
            share = NOISY_SHARES[step >= self._first_cycle]
            noisy = torch.rand(UNET_BATCH, generator=generator) < share
            late = torch.randint(NOISY_FROM, 1000, (UNET_BATCH,), generator=generator)
            timesteps = torch.where(noisy, late, timesteps)
        ids = self._input_ids[rows].clone()
        ids[torch.rand(UNET_BATCH, generator=generator) < CAPTION_DROPOUT] = self._empty
        signal = self._alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        sample = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        return Batch(sample, noise, timesteps, ids, (signal / (1 - signal)).flatten())


if __name__ == "__main__":
    main()
