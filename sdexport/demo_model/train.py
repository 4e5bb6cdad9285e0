"""Train the embedded model: `python -m sdexport.demo_model.train --work DIR`.

Four stages, each resumable: tokenizer, VAE, latents, then UNet with text encoder. All randomness
comes from (seed, stage, step), so a stopped run continues exactly where it was. The VAE sees
64x64 crops first (a quarter of the work), whole pictures after. The UNet and the text encoder are
trained together from nothing on latents that were computed once.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPTokenizer

from sdexport.demo_model import MODEL_DIR, dataset
from sdexport.demo_model import architecture as arch

VAE_BATCH, VAE_CROP = 16, 64
UNET_BATCH = 64
KL_WEIGHT = 1e-4
CAPTION_DROPOUT = 0.1
SNR_CAP = 5.0
OFFSET_FROM, NOISE_OFFSET = 900, 0.25
"""From this step on the noise has a random mean for each channel, of this deviation.

Even the noisiest latents of this schedule show the background's colour in their mean; a model that
reads it there ignores the caption, and paints the colour that the first noise happens to suggest.
"""
NOISY_SHARES, NOISY_FROM = (0.4, 0.6), 700
"""From the same step on, the share of examples drawn from the noisiest timesteps, where the caption
decides: in the first cycle, and in the later ones."""
EMA_DECAY = 0.999
DECAY_SHARE = 0.25
"""The last share of the steps over which the learning rate falls to zero."""
SAVE_EVERY = 100


def main() -> None:
    """Train, or go on from the last checkpoint, and write the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m sdexport.demo_model.train"
    )
    parser.add_argument("--work", type=Path, required=True, help="checkpoints; resumes from here")
    parser.add_argument("--output", type=Path, default=MODEL_DIR, help="diffusers folder to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-crop-steps", type=int, default=3000)
    parser.add_argument("--vae-steps", type=int, default=4000, help="with the steps on crops")
    parser.add_argument("--scenes", type=int, default=20480)
    parser.add_argument("--unet-cycles", type=int, nargs="+", default=[4000, 1200, 450])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    vocab_size = arch.write_tokenizer(args.work / "tokenizer")
    vae = train_vae(args)
    latents, input_ids, scale = encode_scenes(args, vae)
    unet, text_encoder = train_unet(args, latents, input_ids, vocab_size)
    vae.register_to_config(scaling_factor=scale)
    write_model(args.output, args.work / "tokenizer", vae, unet, text_encoder)


def seeded(*key: int) -> np.random.Generator:
    """The generator of (seed, stage[, step])."""
    return np.random.default_rng(key)


def learning_rate(step: int, ends: Sequence[int], peak: float) -> float:
    """For each cycle linear warm-up over 100 steps, constant, linear decay over `DECAY_SHARE`.

    Args:
      ends: the step at which each cycle ends, rising.
    """
    start, end = next((a, b) for a, b in itertools.pairwise((0, *ends)) if step < b)
    return peak * min(1.0, (step - start + 1) / 100, (end - step) / (DECAY_SHARE * (end - start)))


class Trainer:
    """The optimiser, its moving average and its checkpoint; one object a stage."""

    def __init__(
        self, path: Path, modules: torch.nn.ModuleDict, *, peak: float, ends: Sequence[int]
    ):
        self.path, self.modules, self.peak, self.ends = path, modules, peak, ends
        self.average = copy.deepcopy(modules).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            modules.parameters(), betas=(0.9, 0.99), weight_decay=0.01
        )
        self.step = 0
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            modules.load_state_dict(state["modules"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def save(self) -> None:
        state = {
            "modules": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        beside = self.path.with_suffix(".tmp")
        torch.save(state, beside)
        os.replace(beside, self.path)

    def run(self, loss_of: Callable[[int], tuple[torch.Tensor, str]]) -> torch.nn.ModuleDict:
        """Train to the last step; returns the moving average of the weights."""
        started, first = time.monotonic(), self.step
        last = self.ends[-1]
        while self.step < last:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.ends, self.peak)
            loss, note = loss_of(self.step)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            decay = min(EMA_DECAY, self.step / (self.step + 50))
            with torch.no_grad():
                for mean, weight in zip(
                    self.average.parameters(), self.modules.parameters(), strict=True
                ):
                    mean.lerp_(weight, 1 - decay)
            if self.step % SAVE_EVERY == 0 or self.step == last:
                self.save()
                pace = (time.monotonic() - started) / (self.step - first)
                print(
                    f"{self.path.stem} {self.step}/{last} {note} {pace:.2f} s/step",
                    flush=True,
                )
        return self.average


def train_vae(args: argparse.Namespace) -> Any:
    """Stage 1: the VAE with averaged weights, for inference."""
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
    """(B, 3, H, W) float32 in -1..1; every third scene in colours outside of the palette."""
    pictures = []
    for i in range(VAE_BATCH):
        scene, _ = dataset.sample_scene(rng)
        picture = dataset.render(dataset.recolour(scene, rng) if i % 3 == 0 else scene)
        if crop:
            y, x = rng.integers(0, dataset.IMAGE_SIZE - VAE_CROP + 1, 2)
            picture = picture[y : y + VAE_CROP, x : x + VAE_CROP]
        pictures.append(picture)
    return to_pixels(np.stack(pictures))


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_scenes(args: argparse.Namespace, vae: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Posterior parameters (N, 8, 16, 16), token ids (N, 77) and the scaling factor of the data."""
    path = args.work / "latents.pt"
    if not path.exists():
        tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
        rng = seeded(args.seed, 2)
        moments: list[torch.Tensor] = []
        captions: list[str] = []
        while len(captions) < args.scenes:
            scenes = [dataset.sample_scene(rng) for _ in range(64)]
            pixels = to_pixels(np.stack([dataset.render(s) for s, _ in scenes])).to(args.device)
            posterior = vae.encode(pixels).latent_dist
            moments.append(torch.cat([posterior.mean, posterior.std], dim=1).cpu())
            captions += [caption for _, caption in scenes]
        ids = tokenizer(captions, padding="max_length", max_length=arch.MAX_LENGTH).input_ids
        torch.save({"moments": torch.cat(moments), "ids": torch.tensor(ids)}, path)
    data = torch.load(path, weights_only=True)
    mean, std = data["moments"].chunk(2, dim=1)
    variance = mean.var() + std.square().mean()
    print(f"latents: {len(mean)} scenes, std {variance.sqrt():.3f}", flush=True)
    return data["moments"], data["ids"], float(1 / variance.sqrt())


def train_unet(
    args: argparse.Namespace, moments: torch.Tensor, input_ids: torch.Tensor, vocab_size: int
) -> tuple[Any, Any]:
    """UNet and text encoder, trained together on the latents of captioned pictures."""
    torch.manual_seed(args.seed + 1)
    modules = torch.nn.ModuleDict(
        {"unet": arch.build_unet(), "text_encoder": arch.build_text_encoder(vocab_size)}
    ).to(args.device)
    unet: Any = modules["unet"]
    text_encoder: Any = modules["text_encoder"]
    ends = tuple(itertools.accumulate(args.unet_cycles))
    trainer = Trainer(args.work / "unet.pt", modules, peak=1e-3, ends=ends)

    mean, std = moments.chunk(2, dim=1)
    scale = 1 / (mean.var() + std.square().mean()).sqrt()
    config = arch.SCHEDULER_CONFIG
    low, high = math.sqrt(float(config["beta_start"])), math.sqrt(float(config["beta_end"]))  # type: ignore[arg-type]
    betas = torch.linspace(low, high, 1000, dtype=torch.float64).square()
    alphas_cumprod = (1 - betas).cumprod(0).float()
    empty = torch.full((arch.MAX_LENGTH,), vocab_size - 1)
    empty[0] = vocab_size - 2

    def loss_of(step: int) -> tuple[torch.Tensor, str]:
        rng = seeded(args.seed, 3, step)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        rows = torch.from_numpy(rng.integers(0, len(mean), UNET_BATCH))
        posterior_noise = torch.randn(mean[rows].shape, generator=generator)
        latents = scale * (mean[rows] + std[rows] * posterior_noise)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (UNET_BATCH,), generator=generator)
        if step >= OFFSET_FROM:
            noise += NOISE_OFFSET * torch.randn(*latents.shape[:2], 1, 1, generator=generator)
            noisy = torch.rand(UNET_BATCH, generator=generator) < NOISY_SHARES[step >= ends[0]]
            late = torch.randint(NOISY_FROM, 1000, (UNET_BATCH,), generator=generator)
            timesteps = torch.where(noisy, late, timesteps)
        ids = input_ids[rows].clone()
        ids[torch.rand(UNET_BATCH, generator=generator) < CAPTION_DROPOUT] = empty
        signal = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        sample = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        with torch.autocast(args.device, torch.bfloat16):
            hidden = text_encoder(ids.to(args.device)).last_hidden_state
            predicted = unet(sample.to(args.device), timesteps.to(args.device), hidden).sample
        error = (predicted.float().cpu() - noise).square().mean(dim=(1, 2, 3))
        snr = (signal / (1 - signal)).flatten()
        loss = (error * snr.clamp(max=SNR_CAP) / snr).mean()  # Min-SNR, arXiv 2303.09556, eq. 6
        high = error[timesteps >= NOISY_FROM].mean().item()
        return loss, f"loss {loss.item():.4f} mse {error.mean().item():.4f} noisy {high:.4f}"

    average = trainer.run(loss_of)
    return average["unet"].eval(), average["text_encoder"].eval()


def write_model(folder: Path, tokenizer: Path, vae: Any, unet: Any, text_encoder: Any) -> None:
    """Write the diffusers folder in half precision."""
    for name, module in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder)):
        module.cpu().half().save_pretrained(folder / name, safe_serialization=True)
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    for file in tokenizer.iterdir():
        (folder / "tokenizer" / file.name).write_bytes(file.read_bytes())
    (folder / "scheduler").mkdir(exist_ok=True)
    arch.write_json(folder / "scheduler" / "scheduler_config.json", arch.SCHEDULER_CONFIG)
    arch.write_json(folder / "model_index.json", arch.MODEL_INDEX)


if __name__ == "__main__":
    main()
