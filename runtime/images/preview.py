"""Previews of latents: linear RGB, single channels, and an image of each step."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.files import write_atomically
from sdexport.engines.messages import shown
from sdexport.runtime.denoise import DenoiseStep
from sdexport.runtime.images import xmp
from sdexport.runtime.images.metadata import save_image
from sdexport.runtime.images.pixels import to_uint8

METHODS = ("vae", "linear")
ANIMATIONS = (".webp", ".gif")


def linear_preview(latents: np.ndarray, factors: Sequence[Sequence[float]]) -> np.ndarray:
    """A cheap preview without the VAE: a linear map from latents to RGB, one pixel per cell.

    Args:
      latents: (B, C, h, w) float32, scaled as the UNet takes them.
      factors: (C + 1, 3): what each channel adds to red, green and blue in -1..1, then the bias. A
        package has its own in `manifest.preview`.
    Returns: (B, h, w, 3) uint8.
    Raises: InvalidArgumentError: the number of channels differs.
    """
    table = np.asarray(factors, np.float32)
    if table.shape != (latents.shape[1] + 1, 3):
        raise InvalidArgumentError(
            f"preview: expected factors ({latents.shape[1] + 1}, 3), got {table.shape}"
        )
    sample = np.einsum("bchw,cr->brhw", latents, table[:-1]) + table[-1][:, None, None]
    return to_uint8(sample)


def channels_view(latents: np.ndarray) -> np.ndarray:
    """The channels of latents as grey images next to each other, each scaled to its own range.

    Args:
      latents: (B, C, h, w) float32.
    Returns: (B, h, C * w) uint8.
    """
    low, high = (f(latents, axis=(2, 3), keepdims=True) for f in (np.min, np.max))
    grey = (latents - low) / np.where(high > low, high - low, 1) * 255
    return np.concatenate(list(np.rint(grey).astype(np.uint8).transpose(1, 0, 2, 3)), axis=2)


def enlarge(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Enlarge a preview without smoothing it.

    Args:
      pixels: (H, W) or (H, W, 3) uint8.
      size: (width, height) in pixels.
    """
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def save_animation(
    frames: Sequence[Image.Image], path: str | Path, *, seconds: float = 0.12, mark: bool = True
) -> None:
    """Write images of one size as an animated WebP or GIF; the write is atomic.

    Args:
      frames: one or more.
      path: a file name that ends in .webp or .gif.
      seconds: duration of a frame; the last one is shown ten times as long.
      mark: say in a WebP file that the images were made by a model; see save_image.
    Raises:
      InvalidArgumentError: no frames, or another suffix.
      OSError: the file cannot be written.
    """
    path = Path(path)
    if not frames or path.suffix.lower() not in ANIMATIONS:
        raise InvalidArgumentError(
            f"{path}: expected one or more frames and a name that ends in {' or '.join(ANIMATIONS)}"
        )
    times = [round(seconds * 1000)] * len(frames)
    times[-1] *= 10
    kind = path.suffix.lower()[1:]
    options: dict[str, Any] = {"quality": 90} if kind == "webp" else {}
    if kind == "webp" and mark:
        options["xmp"] = xmp.packet(source_type=xmp.GENERATED)
    content = io.BytesIO()
    frames[0].save(
        content,
        format=kind.upper(),
        save_all=True,
        append_images=list(frames[1:]),
        duration=times,
        loop=0,
        **options,
    )
    write_atomically(path, content.getvalue())


class PreviewWriter:
    """Writes an image of each step: the noisy latents on the left, the clean estimate on the right.

    Pass it to a pipeline as `on_step`, then call `finish`. The images of a batch are stacked.

    Args:
      pipeline: decodes the latents, and has the package's factors.
      folder: where step-000.png and so on are written; created with the first of them.
      method: "vae" decodes both halves in each step; "linear" is fast and coarse.
      prefix: of the file names, if several runs share the folder.
      mark: say in the files that the images were made by a model; see save_image.
    Raises: InvalidArgumentError: unknown method; the package has no factors for "linear".
    Example:
        >>> from sdexport import load_pipeline
        >>> from sdexport.runtime.images.preview import PreviewWriter
        >>> with load_pipeline("package") as pipe:
        ...     previews = PreviewWriter(pipe, "previews", method="linear")
        ...     result = pipe("a red circle", seed=0, num_inference_steps=4, on_step=previews)
        >>> previews.finish().name
        'steps.webp'
    """

    def __init__(
        self,
        pipeline: Any,
        folder: str | Path,
        *,
        method: str = "vae",
        prefix: str = "",
        mark: bool = True,
    ) -> None:
        if method not in METHODS:
            raise InvalidArgumentError(
                f"unknown preview {shown(method)}; choose one of {', '.join(METHODS)}"
            )
        self._pipeline, self._method, self._prefix = pipeline, method, prefix
        self._mark = mark
        self._factors = pipeline.package.manifest.preview
        if method == "linear" and self._factors is None:
            raise InvalidArgumentError(
                "this package has no factors for linear previews: export it again, or use the VAE"
            )
        self.folder = Path(folder)
        self._frames: list[Image.Image] = []

    def __call__(self, step: DenoiseStep) -> None:
        latents = step.latents
        self.folder.mkdir(parents=True, exist_ok=True)
        # the latents of some schedulers have a larger variance than the VAE was trained on
        latents = latents / max(1.0, float(latents.std()))
        pair = np.concatenate([self._pixels(latents), self._pixels(step.pred_original_sample)], 2)
        frame = Image.fromarray(np.concatenate(list(pair)))
        path = self.folder / f"{self._prefix}step-{len(self._frames):03d}.png"
        save_image(frame, path, mark=self._mark)
        self._frames.append(frame)

    def finish(self) -> Path:
        """Write the animation of all steps, steps.webp, and return its path.

        Raises: InvalidArgumentError: no step has run.
        """
        path = self.folder / f"{self._prefix}steps.webp"
        save_animation(self._frames, path, mark=self._mark)
        return path

    def _pixels(self, latents: np.ndarray) -> np.ndarray:
        if self._method == "vae":
            decoded: np.ndarray = self._pipeline.decode(latents)
            return decoded
        unit = self._pipeline.package.manifest.downscale
        coarse = linear_preview(latents, self._factors)
        return coarse.repeat(unit, axis=1).repeat(unit, axis=2)
