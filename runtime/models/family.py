"""What kind of model a package holds, and what a picture by it must be given for that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sdexport.engines import Session
from sdexport.runtime import inputs
from sdexport.runtime.guidance import Guidance, GuidanceFunction
from sdexport.runtime.images.loading import ImageInput
from sdexport.runtime.inputs import Given
from sdexport.runtime.models.defaults import Defaults, defaults
from sdexport.runtime.models.unet_inputs import Sizes, conditions
from sdexport.runtime.packages.package import Package


class Kind:
    """Reads the package's configurations and the edges of its graphs.

    Args:
      session: gives a component's open session.
    """

    def __init__(self, package: Package, session: Callable[[str], Session]) -> None:
        self._package, self._session = package, session

    @property
    def is_xl(self) -> bool:
        """SDXL, or its refiner."""
        return "text_encoder_2" in self._package.manifest.components

    @property
    def takes_zeros(self) -> bool:
        """Whether no negative prompt means zeros in place of embeddings."""
        return self.is_xl and bool(self._package.index.get("force_zeros_for_empty_prompt", True))

    @property
    def is_told_scale(self) -> bool:
        """Whether the guidance scale is an input of the UNet."""
        return any(spec.name == "timestep_cond" for spec in self._session("unet").inputs)

    @property
    def draws_posterior(self) -> bool:
        """Whether the VAE gives moments to draw from; AutoencoderTiny gives bare latents."""
        outputs = self._session("vae_encoder").outputs
        return outputs[0].shape[1] != self._package.manifest.latent_channels

    @property
    def inpaints(self) -> bool:
        """Whether the UNet has channels for mask and masked picture."""
        spec = next(s for s in self._session("unet").inputs if s.name == "sample")
        return spec.shape[1] == 2 * self._package.manifest.latent_channels + 1

    def defaults(self, *, image: bool, mask: bool) -> Defaults:
        """What is taken for arguments that are not given."""
        return defaults(xl=self.is_xl, told_scale=self.is_told_scale, image=image, mask=mask)

    def given(
        self,
        source: ImageInput | Sequence[ImageInput] | None,
        mask: ImageInput | None,
        height: int | None,
        width: int | None,
        resize_mode: str,
        count: int,
    ) -> Given:
        """Pictures and mask that were given, at the size that will be painted."""
        if self.inpaints and mask is None:
            raise ValueError("this package paints into pictures: give image and mask_image")
        if self._package.index.get("requires_aesthetics_score") and source is None:
            raise ValueError("this package refines pictures: give image")
        manifest = self._package.manifest
        return inputs.given(
            source,
            mask,
            height,
            width,
            resize_mode,
            manifest.default_size,
            manifest.downscale,
            count,
        )

    def guidance(
        self,
        scale: float,
        rescale: float,
        interval: tuple[float, float],
        function: GuidanceFunction | None,
    ) -> Guidance:
        """Checked; of scale 1 where the UNet is told the scale instead of led by it."""
        guidance = Guidance(scale, rescale, interval, function)
        return replace(guidance, scale=1.0) if self.is_told_scale else guidance

    def conditions(
        self,
        pooled: np.ndarray | None,
        sizes: Sizes,
        scale: float,
        count: int,
        guidance: Guidance,
    ) -> dict[str, np.ndarray]:
        """The further inputs of the UNet; see sdexport.runtime.models.unet_inputs."""
        unet, index = self._session("unet"), self._package.index
        return conditions(unet, index, pooled, sizes, scale, count, guided=guidance.is_guided)
