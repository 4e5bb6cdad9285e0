"""Where the denoising loop starts: noise, and the latents of an input image and mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.images import vae
from sdexport.runtime.inputs import ImageInputs
from sdexport.runtime.models.latent_space import LatentSpace
from sdexport.runtime.noise.image_noise import ImageNoise
from sdexport.runtime.schedulers import Scheduler
from sdexport.runtime.timestep_plan import TimestepPlan


@dataclass(frozen=True)
class InitialLatents:
    """Where the loop starts, and what keeps it close to an input image.

    noise: (B, C, h, w) float32 standard normal.
    first_step, end_step: indices of the first step that is run, and of the first that is not; None
      runs all that follow.
    is_noised: whether `original` gets the noise of the first step before it.
    original: (B, C, h, w) float32 clean latents of the input image, or None.
    mask: (1 or B, 1, h, w) float32, 1 where new content is generated. Outside of it the latents are
      kept at `original`, unless the denoiser takes the mask itself.
    masked: (B, C, h, w) float32 latents of the image without the masked area, for denoisers that
      take mask and masked image as input channels.
    """

    noise: np.ndarray
    first_step: int = 0
    original: np.ndarray | None = None
    mask: np.ndarray | None = None
    masked: np.ndarray | None = None
    end_step: int | None = None
    is_noised: bool = True

    def steps(self, scheduler: Scheduler) -> range:
        """Indices of the steps that are run."""
        end = len(scheduler.timesteps) if self.end_step is None else self.end_step
        return range(self.first_step, end)

    def latents(self, scheduler: Scheduler) -> np.ndarray:
        """(B, C, h, w): the scheduler's state before the first step."""
        if self.original is not None and not self.is_noised:
            return self.original
        if self.original is None or (self.mask is not None and self.first_step == 0):
            return self.noise * np.float32(scheduler.init_noise_sigma)
        return scheduler.add_noise(self.original, self.noise, self.first_step)

    def denoiser_input(self, sample: np.ndarray) -> np.ndarray:
        """The UNet's input: scaled latents (B, C, h, w), and mask and image if it takes them."""
        if self.masked is None or self.mask is None:
            return sample
        masks = np.broadcast_to(self.mask, (len(sample), *self.mask.shape[1:]))
        return np.concatenate([sample, masks, self.masked], axis=1)

    def outside_mask_restored(
        self, latents: np.ndarray, scheduler: Scheduler, i: int
    ) -> np.ndarray:
        """Latents after step i, with the original at its noise level outside of the mask."""
        if self.mask is None or self.masked is not None or self.original is None:
            return latents
        original = self.original
        if i + 1 < self.steps(scheduler).stop:
            original = scheduler.add_noise(original, self.noise, scheduler.kept_level(i))
        restored: np.ndarray = (1 - self.mask) * original + self.mask * latents
        return restored


def initial_latents(
    inputs: ImageInputs,
    noise_source: ImageNoise,
    shape: tuple[int, int, int, int],
    plan: TimestepPlan,
    encode: Callable[[np.ndarray], np.ndarray],
    *,
    latents: np.ndarray | None,
    space: LatentSpace,
    masked_input: bool,
    posterior: bool,
) -> InitialLatents:
    """Draw the noise and encode the inputs, in the order in which diffusers draws random numbers.

    Args:
      shape: (B, C, h, w) of the latents; B is a multiple of the input images.
      plan: which steps are run.
      encode: pixels (n, 3, H, W) in -1..1 to the VAE encoder's output.
      latents: (B, C, h, w) float32 noise to use instead of drawing it.
      masked_input: whether the denoiser takes mask and masked image.
      posterior: whether the encoder gives mean and log variance to sample from.
    """

    def latents_of(pixels: np.ndarray) -> np.ndarray:
        moments, repeats = encode(pixels), shape[0] // len(pixels)
        if noise_source.per_image:  # each image samples with its own generator
            moments, repeats = np.repeat(moments, repeats, axis=0), 1
        sampled = moments
        if posterior:
            noise = noise_source.draw((len(moments), *shape[1:]))
            sampled = vae.sample_posterior(moments, noise)
        return space.from_vae(np.repeat(sampled, repeats, axis=0))

    if plan.scheduler.inverts:
        _check_inversion(plan, inputs, latents)
    original = masked = mask = None
    if inputs.latents is not None:
        original = np.repeat(inputs.latents, shape[0] // len(inputs.latents), axis=0)
    elif inputs.image is not None and not (masked_input and plan.is_pure_noise):
        original = latents_of(inputs.image)
    noise = latents
    if noise is None and (plan.is_noised or inputs.mask is not None):
        noise = noise_source.draw(shape)
    if inputs.mask is not None:
        unit = inputs.height // shape[2]
        mask = np.ascontiguousarray(inputs.mask[:, :, ::unit, ::unit])
        if len(mask) > 1:
            mask = np.repeat(mask, shape[0] // len(mask), axis=0)
        if masked_input and inputs.image is not None:
            masked = latents_of(inputs.image * (inputs.mask < 0.5))
        elif posterior and inputs.image is not None:
            # diffusers samples this too, although its UNet does not use it
            count = max(len(inputs.image), len(inputs.mask))
            noise_source.draw((shape[0] if noise_source.per_image else count, *shape[1:]))
    return InitialLatents(
        np.zeros(shape, np.float32) if noise is None else noise,
        plan.first_step,
        original,
        mask,
        masked,
        plan.end_step,
        plan.is_noised,
    )


def _check_inversion(plan: TimestepPlan, inputs: ImageInputs, latents: np.ndarray | None) -> None:
    """Raise InvalidArgumentError unless there is something to turn into noise, and no mask."""
    problem = None
    if inputs.mask is not None:
        problem = "it takes no mask_image"
    elif not inputs.has_image and latents is None:
        problem = "give an image, or its latents"
    if problem:
        raise InvalidArgumentError(
            f"scheduler '{plan.name}' goes from an image to noise; {problem}"
        )
