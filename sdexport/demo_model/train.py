"""Train the demo model: `python -m sdexport.demo_model.train --work DIR`.

There are four stages: tokenizer, VAE, latents, then UNet and text encoder together. Each can be
resumed. Random numbers depend on (seed, stage, step) only, so a stopped run continues as if it had
not been stopped. The VAE is trained on crops of 64x64 first, which take a quarter of the time, then
on whole images. The UNet and the text encoder are trained from scratch on latents that are computed
once.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import CLIPTokenizer

from sdexport.demo_model import MODEL_DIR, dataset
from sdexport.demo_model import architecture as arch
from sdexport.engines.files import atomic_write

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
EMA_DECAY = 0.999
DECAY_SHARE = 0.25
"""The learning rate falls to zero over this last share of the steps."""
SAVE_EVERY = 100


def main() -> None:
    """Train, or resume from the last checkpoint, and write the model."""
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
    """A generator for (seed, stage[, step])."""
    return np.random.default_rng(key)


def learning_rate(step: int, ends: Sequence[int], peak: float) -> float:
    """Linear warm-up over 100 steps, constant, linear decay over `DECAY_SHARE`; for each cycle.

    Args:
      ends: the step at which each cycle ends, in increasing order.
    """
    start, end = next((a, b) for a, b in itertools.pairwise((0, *ends)) if step < b)
    return peak * min(1.0, (step - start + 1) / 100, (end - step) / (DECAY_SHARE * (end - start)))


class Trainer:
    """The optimiser of one stage, the moving average of the weights, and the checkpoint file."""

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
        """Write the checkpoint."""
        state = {
            "modules": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        with atomic_write(self.path) as file:
            torch.save(state, file)

    def run(self, loss_of: Callable[[int], tuple[torch.Tensor, str]]) -> torch.nn.ModuleDict:
        """Train to the last step; returns the moving average of the weights."""
        started, first, last = time.monotonic(), self.step, self.ends[-1]
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


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Convert (B, H, W, 3) uint8 to (B, 3, H, W) float32, -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_scenes(args: argparse.Namespace, vae: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Encode captioned scenes, once.

    Returns: posterior mean and deviation (N, 8, 16, 16), token ids (N, 77), and the scaling factor
      that gives the latents a variance of 1.
    """
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
    """Train UNet and text encoder together; returns both with averaged weights.

    Args:
      moments, input_ids: see encode_scenes.
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
        config = arch.SCHEDULER_CONFIG
        low, high = (math.sqrt(float(config[key])) for key in ("beta_start", "beta_end"))  # type: ignore[arg-type]
        betas = torch.linspace(low, high, 1000, dtype=torch.float64).square()
        self._alphas_cumprod = (1 - betas).cumprod(0).float()
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
