"""Where the loop begins: noise, and the latents of a given picture and mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdexport.runtime.images import vae
from sdexport.runtime.inputs import Given, Noise
from sdexport.runtime.schedulers import Scheduler


@dataclass(frozen=True)
class Start:
    """Where the loop begins, and what holds it to a given picture.

    noise: (B, C, H/8, W/8) float32 standard normal.
    index: of the first step that is run.
    original: (B, C, H/8, W/8) clean latents of the picture to begin from, or None.
    mask: (1 or B, 1, H/8, W/8) float32, 1 where painting happens; outside of it a UNet without
      inpainting channels is held to `original`.
    masked: (B, C, H/8, W/8) latents of the picture without what the mask covers, for UNets that
      have channels for mask and masked picture.
    """

    noise: np.ndarray
    index: int = 0
    original: np.ndarray | None = None
    mask: np.ndarray | None = None
    masked: np.ndarray | None = None

    def latents(self, scheduler: Scheduler) -> np.ndarray:
        """The scheduler's state before the first step."""
        if self.original is None or (self.mask is not None and self.index == 0):
            return self.noise * np.float32(scheduler.init_noise_sigma)
        return scheduler.add_noise(self.original, self.noise, self.index)

    def held(self, latents: np.ndarray, scheduler: Scheduler, i: int) -> np.ndarray:
        """Latents after step i with the given picture outside of the mask."""
        if self.mask is None or self.masked is not None or self.original is None:
            return latents
        given = self.original
        if i + 1 < len(scheduler.timesteps):
            given = scheduler.add_noise(given, self.noise, i + 1)
        held: np.ndarray = (1 - self.mask) * given + self.mask * latents
        return held


def start(
    given: Given,
    source: Noise,
    shape: tuple[int, int, int, int],
    begin: int,
    posterior: Callable[[np.ndarray], np.ndarray],
    *,
    latents: np.ndarray | None,
    scaling_factor: float,
    inpaints: bool,
    draws: bool,
) -> Start:
    """Noise and the latents of what was given, drawn in the order in which diffusers draws.

    Args:
      shape: (B, C, H/8, W/8) of the latents; B is a multiple of the given pictures.
      begin: index of the first step.
      posterior: pixels to the VAE's moments.
      latents: noise to take instead of drawing it.
      inpaints: whether the UNet has channels for mask and masked picture.
      draws: whether the VAE gives moments to draw from; AutoencoderTiny gives bare latents.
    """

    def latents_of(pixels: np.ndarray) -> np.ndarray:
        moments, repeats = posterior(pixels), shape[0] // len(pixels)
        if source.each:  # every picture draws its own
            moments, repeats = np.repeat(moments, repeats, axis=0), 1
        drawn = moments
        if draws:
            drawn = vae.sample_posterior(moments, source.draw((len(moments), *shape[1:])))
        scaled: np.ndarray = np.repeat(drawn, repeats, axis=0) * np.float32(scaling_factor)
        return scaled

    original = masked = mask = None
    if given.image is not None and not (inpaints and begin == 0):
        original = latents_of(given.image)
    noise = source.draw(shape) if latents is None else latents
    if given.image is not None and given.mask is not None:
        unit = given.height // shape[2]
        mask = np.ascontiguousarray(given.mask[:, :, ::unit, ::unit])
        if inpaints:
            masked = latents_of(given.image * (given.mask < 0.5))
        elif draws:  # diffusers draws for this too, though the UNet does not look at it
            source.draw((shape[0] if source.each else len(given.image), *shape[1:]))
    return Start(noise, begin, original, mask, masked)
