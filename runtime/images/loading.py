"""Input images and masks: loaded from files, Pillow images or arrays, and resized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import one_line, shown

ImageInput = str | Path | Image.Image | np.ndarray
"""A file, a Pillow image of any mode, or pixels: (H, W), (H, W, 3) or (H, W, 4) uint8."""
RESIZE_MODES = ("stretch", "crop", "fill")


def load_image(source: ImageInput) -> Image.Image:
    """Load an image as 8-bit RGB, rotated as its EXIF orientation says.

    Transparent pixels are composited over white. Integers of 16 or 32 bits are scaled from 0..65535
    to 8 bits. Of an animation the first frame is used.

    Raises:
      FileNotFoundError: there is no such file.
      InvalidArgumentError: the file cannot be read as an image; the pixels are floats, whose range
        is unknown; an array of another shape or dtype.
    """
    if isinstance(source, (str, Path)):
        return _read(Path(source))
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if not isinstance(source, Image.Image):
        raise InvalidArgumentError(
            f"image: expected a file, a Pillow image or an array, got {shown(source)}"
        )
    return _to_rgb(source, f"image of mode {source.mode}")


def _from_array(pixels: np.ndarray) -> Image.Image:
    is_image = pixels.ndim >= 2 and pixels.shape[2:] in ((), (3,), (4,))
    if pixels.dtype != np.uint8 or not is_image or not pixels.size:
        raise InvalidArgumentError(
            "image: expected (H, W), (H, W, 3) or (H, W, 4) uint8, "
            f"got {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(pixels)


def _read(path: Path) -> Image.Image:
    try:
        opened = Image.open(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no image at {path}") from None
    except Exception as error:  # Pillow's readers raise anything from OSError to struct.error
        raise _unreadable(str(path), error) from error
    with opened:
        return _to_rgb(opened, str(path))


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """8-bit RGB; `name` is what an error message calls the image."""
    if image.mode.startswith("F"):
        raise InvalidArgumentError(
            f"{name}: float pixels have no agreed range; convert them to 8 bits first"
        )
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            levels = np.clip(np.asarray(image), 0, 65535) / 257
            image = Image.fromarray(np.rint(levels).astype(np.uint8))
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")
    except Exception as error:  # Pillow reads the pixels only now; see _read
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(f"{name} cannot be read as an image: {one_line(error)}")


def resize(image: Image.Image, width: int, height: int, mode: str = "stretch") -> Image.Image:
    """Resize an image with a Lanczos filter; an image of that size is returned as it is.

    Args:
      width, height: in pixels, 1 or more.
      mode: "stretch" changes the proportions, which is the default of diffusers; "crop" fills the
        size and cuts equal parts off two sides; "fill" fits the whole image in, centred, and
        repeats its edges around it.
    Raises: InvalidArgumentError: unknown mode.
    """
    if mode not in RESIZE_MODES:
        raise InvalidArgumentError(
            f"unknown resize_mode {shown(mode)}; choose one of {', '.join(RESIZE_MODES)}"
        )
    if image.size == (width, height):
        return image
    lanczos = Image.Resampling.LANCZOS
    if mode == "stretch":
        return image.resize((width, height), lanczos)
    if mode == "crop":
        return ImageOps.fit(image, (width, height), lanczos)
    scale = min(width / image.width, height / image.height)
    inside = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    inner = image.resize(inside, lanczos)
    left, top = (width - inner.width) // 2, (height - inner.height) // 2
    pixels = np.asarray(inner)
    sides = [(top, height - inner.height - top), (left, width - inner.width - left), (0, 0)]
    return Image.fromarray(np.pad(pixels, sides[: pixels.ndim], mode="edge"))


def load_mask(source: ImageInput, width: int, height: int, mode: str = "stretch") -> np.ndarray:
    """Load an inpainting mask: bright pixels are generated, dark ones are kept.

    Args:
      width, height, mode: see `resize`.
    Returns: (1, 1, height, width) float32: 1 where the grey value is 128 or more, else 0.
    Raises: FileNotFoundError, InvalidArgumentError: see `load_image` and `resize`.
    """
    grey = resize(load_image(source).convert("L"), width, height, mode)
    return (np.asarray(grey, np.float32) / 255 >= 0.5).astype(np.float32)[None, None]
