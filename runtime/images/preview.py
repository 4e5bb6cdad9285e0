"""Looking at latents on their way: cheap colours, single channels, pictures of every step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdexport.engines.files import atomic_write
from sdexport.runtime.denoise import DenoiseStep
from sdexport.runtime.images.metadata import save_image
from sdexport.runtime.images.pixels import to_uint8

METHODS = ("vae", "linear")
ANIMATIONS = (".webp", ".gif")


def linear_preview(latents: np.ndarray, colours: Sequence[Sequence[float]]) -> np.ndarray:
    """Colours of latents by a linear map, one pixel a cell; no VAE needed.

    Args:
      latents: (B, C, h, w) as the UNet has them.
      colours: (C + 1, 3), what each channel adds to red, green and blue in -1..1, the constant
        last; a package keeps its own in `manifest.preview`.
    Returns: (B, h, w, 3) uint8.
    Raises: ValueError: channels differ.
    """
    table = np.asarray(colours, np.float32)
    if table.shape != (latents.shape[1] + 1, 3):
        raise ValueError(
            f"preview: expected colours ({latents.shape[1] + 1}, 3), got {table.shape}"
        )
    sample = np.einsum("bchw,cr->brhw", latents, table[:-1]) + table[-1][:, None, None]
    return to_uint8(sample)


def channels_view(latents: np.ndarray) -> np.ndarray:
    """The channels of latents side by side in grey, each stretched to its own range.

    Args:
      latents: (B, C, h, w).
    Returns: (B, h, C * w) uint8.
    """
    low, high = (f(latents, axis=(2, 3), keepdims=True) for f in (np.min, np.max))
    grey = (latents - low) / np.where(high > low, high - low, 1) * 255
    return np.concatenate(list(np.rint(grey).astype(np.uint8).transpose(1, 0, 2, 3)), axis=2)


def show(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """(H, W[, 3]) uint8 as a picture of (width, height), cells kept sharp."""
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def save_animation(
    frames: Sequence[Image.Image], path: str | Path, *, seconds: float = 0.12
) -> None:
    """Write pictures of one size as an animated WebP or GIF; the last one stays longer.

    Raises: ValueError: no frames, or another suffix. OSError: the file cannot be written.
    """
    path = Path(path)
    if not frames or path.suffix.lower() not in ANIMATIONS:
        raise ValueError(
            f"{path}: expected frames and a name that ends in {' or '.join(ANIMATIONS)}"
        )
    times = [round(seconds * 1000)] * len(frames)
    times[-1] *= 10
    kind = path.suffix.lower()[1:]
    options: dict[str, Any] = {"quality": 90} if kind == "webp" else {}
    with atomic_write(path) as file:
        frames[0].save(
            file,
            format=kind.upper(),
            save_all=True,
            append_images=list(frames[1:]),
            duration=times,
            loop=0,
            **options,
        )


class PreviewWriter:
    """Writes a picture of every step: what is still noisy, and beside it what is seen behind it.

    Pass it as `on_step`, then call `finish`. Pictures of a batch stand below each other.

    Args:
      pipeline: decodes, and knows the package's colours.
      folder: where step-000.png and so on go; made with the first of them.
      method: "vae" decodes both sides in every step; "linear" is cheap and coarse.
      prefix: of the names, where several runs share the folder.
    Raises: ValueError: unknown method, or the package has no colours for "linear".
    """

    def __init__(
        self, pipeline: Any, folder: str | Path, *, method: str = "vae", prefix: str = ""
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"unknown preview '{method}'; choose one of {', '.join(METHODS)}")
        self._pipeline, self._method, self._prefix = pipeline, method, prefix
        self._colours = pipeline.package.manifest.preview
        if method == "linear" and self._colours is None:
            raise ValueError(
                "this package has no colours for linear previews: export it again, or preview "
                "with the VAE"
            )
        self.folder = Path(folder)
        self._frames: list[Image.Image] = []

    def __call__(self, step: DenoiseStep) -> None:
        latents = step.latents
        self.folder.mkdir(parents=True, exist_ok=True)
        # some schedulers keep the noise at its own strength: brought to what the VAE knows
        latents = latents / max(1.0, float(latents.std()))
        pair = np.concatenate([self._pixels(latents), self._pixels(step.pred_original_sample)], 2)
        frame = Image.fromarray(np.concatenate(list(pair)))
        save_image(frame, self.folder / f"{self._prefix}step-{len(self._frames):03d}.png")
        self._frames.append(frame)

    def finish(self) -> Path:
        """Write the animation of all steps; returns its path."""
        path = self.folder / f"{self._prefix}steps.webp"
        save_animation(self._frames, path)
        return path

    def _pixels(self, latents: np.ndarray) -> np.ndarray:
        if self._method == "vae":
            decoded: np.ndarray = self._pipeline.decode(latents)
            return decoded
        unit = self._pipeline.package.manifest.downscale
        coarse = linear_preview(latents, self._colours)
        return coarse.repeat(unit, axis=1).repeat(unit, axis=2)
