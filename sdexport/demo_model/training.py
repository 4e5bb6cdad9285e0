"""What the training scripts of the demo model share: optimiser, checkpoints, files."""

from __future__ import annotations

import argparse
import bisect
import copy
import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from sdexport.demo_model import architecture as arch
from sdexport.engines.files import atomic_write

EMA_DECAY = 0.999
DECAY_SHARE = 0.25
"""The learning rate falls to zero over this last share of the steps."""
SAVE_EVERY = 100
ENCODE_BATCH = 64


def add_common_arguments(parser: argparse.ArgumentParser, output: Path) -> None:
    """The arguments that all training scripts have.

    Args:
      output: where the result is written by default.
    """
    parser.add_argument("--work", type=Path, required=True, help="checkpoints; resumes from here")
    parser.add_argument("--output", type=Path, default=output, help="folder to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)


def seeded(*key: int) -> np.random.Generator:
    """A generator for (seed, stage[, step])."""
    return np.random.default_rng(key)


def cycle_of(step: int, ends: Sequence[int]) -> int:
    """The number of the cycle that a step is in.

    Args:
      ends: the step at which each cycle ends, in increasing order.
    """
    return bisect.bisect_right(ends, step)


def learning_rate(step: int, ends: Sequence[int], peaks: Sequence[float]) -> float:
    """Linear warm-up over 100 steps, constant, linear decay over `DECAY_SHARE`; for each cycle.

    Args:
      ends: see cycle_of. peaks: the learning rate of each cycle.
    """
    cycle = cycle_of(step, ends)
    start, end = (0, *ends)[cycle], ends[cycle]
    decay = (end - step) / (DECAY_SHARE * (end - start))
    return peaks[cycle] * min(1.0, (step - start + 1) / 100, decay)


class Trainer:
    """The optimiser of one stage, the moving average of the weights, and the checkpoint file.

    Args:
      peak, ends: see learning_rate; one peak is that of all cycles.
    """

    def __init__(
        self,
        path: Path,
        modules: torch.nn.ModuleDict,
        *,
        peak: float | Sequence[float],
        ends: Sequence[int],
    ):
        self.path, self.modules, self.ends = path, modules, ends
        self.peaks = [peak] * len(ends) if isinstance(peak, float) else peak
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
                group["lr"] = learning_rate(self.step, self.ends, self.peaks)
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


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Convert (B, H, W, 3) uint8 to (B, 3, H, W) float32, -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_images(vae: Any, images: Iterable[np.ndarray]) -> torch.Tensor:
    """Mean and deviation of the posteriors, not scaled: (N, 8, 16, 16) float32.

    Args:
      images: each (128, 128, 3) uint8.
    """
    every, moments = iter(images), []
    while batch := list(itertools.islice(every, ENCODE_BATCH)):
        posterior = vae.encode(to_pixels(np.stack(batch)).to(vae.device)).latent_dist
        moments.append(torch.cat([posterior.mean, posterior.std], dim=1).cpu())
    return torch.cat(moments)


def read_model(folder: Path) -> tuple[Any, Any, Any]:
    """VAE, UNet and text encoder of a demo model, in float32."""
    vae, unet = arch.build_vae(), arch.build_unet()
    config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    vae.register_to_config(scaling_factor=config["scaling_factor"])
    vocab = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    encoder = arch.build_text_encoder(len(vocab))
    for name, module in (("vae", vae), ("unet", unet)):
        module.load_state_dict(load_file(folder / name / "diffusion_pytorch_model.safetensors"))
    encoder.load_state_dict(load_file(folder / "text_encoder" / "model.safetensors"))
    return vae, unet, encoder


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
