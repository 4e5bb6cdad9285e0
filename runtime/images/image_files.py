"""Pictures: into the VAE's numbers, and from them to PNG files that carry their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from sdexport.engines.files import atomic_write
from sdexport.engines.messages import one_line, shown
from sdexport.runtime.version import __version__

ImageInput = str | Path | Image.Image | np.ndarray
"""A file, a Pillow image of any mode, or pixels: (H, W), (H, W, 3) or (H, W, 4) uint8."""
RESIZE_MODES = ("stretch", "crop", "fill")


@dataclass(frozen=True)
class Parameters:
    """What a picture was made from."""

    prompt: str
    negative_prompt: str
    num_inference_steps: int
    scheduler: str
    guidance_scale: float
    seed: int | None
    width: int
    height: int
    model: str
    eta: float = 0.0
    strength: float | None = None
    batch_size: int = 1
    batch_index: int = 0

    def __str__(self) -> str:
        """The `parameters` text that Stable Diffusion user interfaces write into PNG files."""
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        settings = {
            "Steps": self.num_inference_steps,
            "Sampler": self.scheduler.upper(),
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model": self.model,
            "Denoising strength": self.strength,
            "Eta": self.eta or None,
            # a batch from one seed: this picture comes again only as the same one of as many
            "Batch size": self.batch_size if self.batch_size > 1 else None,
            "Batch pos": self.batch_index if self.batch_size > 1 else None,
            "Version": f"sdexport {__version__}",
        }
        lines.append(", ".join(f"{k}: {v}" for k, v in settings.items() if v is not None))
        return "\n".join(lines)


def open_image(source: ImageInput) -> Image.Image:
    """Any picture as it is meant to be seen: turned as its EXIF says, 8 bits, RGB.

    Transparency is laid over white. Integers of 16 or 32 bits count as 0..65535 and are brought to
    8 bits; floats are refused, since nothing says which of them is white. Of an animation the
    first picture is taken.
    Raises: FileNotFoundError: no such file. ValueError: no picture, or one of another kind.
    """
    if isinstance(source, (str, Path)):
        return _read(Path(source))
    if isinstance(source, np.ndarray):
        source = _of_array(source)
    if not isinstance(source, Image.Image):
        raise ValueError(f"image: expected a file, a Pillow image or an array, got {shown(source)}")
    return _brought_to_rgb(source, f"image of mode {source.mode}")


def _of_array(pixels: np.ndarray) -> Image.Image:
    shaped = pixels.ndim >= 2 and pixels.shape[2:] in ((), (3,), (4,))
    if pixels.dtype != np.uint8 or not shaped or not pixels.size:
        raise ValueError(
            "image: expected (H, W), (H, W, 3) or (H, W, 4) uint8, "
            f"got {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(pixels)


def _read(path: Path) -> Image.Image:
    try:
        opened = Image.open(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no picture at {path}") from None
    except Exception as error:  # what Pillow's readers raise ranges from OSError to struct.error
        raise ValueError(f"{path} is no picture that can be read: {one_line(error)}") from error
    with opened:
        return _brought_to_rgb(opened, str(path))


def _brought_to_rgb(image: Image.Image, what: str) -> Image.Image:
    """Raises: ValueError: see open_image; `what` it is that cannot be read."""
    if image.mode.startswith("F"):
        raise ValueError(f"{what}: float pixels have no agreed range; bring it to 8 bits first")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            levels = np.clip(np.asarray(image), 0, 65535) / 257
            image = Image.fromarray(np.rint(levels).astype(np.uint8))
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")
    except Exception as error:  # pixels are read only now; see _read
        raise ValueError(f"{what} is no picture that can be read: {one_line(error)}") from error


def resize(image: Image.Image, width: int, height: int, mode: str = "stretch") -> Image.Image:
    """Bring a picture to a size.

    Args:
      mode: "stretch" lets the proportions change, as diffusers does by default; "crop" covers the
        size and cuts what is over, evenly; "fill" puts the whole picture in the middle and
        repeats its edges around it.
    Raises: ValueError: unknown mode.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(
            f"unknown resize_mode {shown(mode)}; choose one of {', '.join(RESIZE_MODES)}"
        )
    if image.size == (width, height):
        return image
    how = Image.Resampling.LANCZOS
    if mode == "stretch":
        return image.resize((width, height), how)
    if mode == "crop":
        return ImageOps.fit(image, (width, height), how)
    scale = min(width / image.width, height / image.height)
    inside = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    inner = image.resize(inside, how)
    left, top = (width - inner.width) // 2, (height - inner.height) // 2
    pixels = np.asarray(inner)
    sides = [(top, height - inner.height - top), (left, width - inner.width - left), (0, 0)]
    return Image.fromarray(np.pad(pixels, sides[: pixels.ndim], mode="edge"))


def to_sample(image: Image.Image) -> np.ndarray:
    """(1, 3, H, W) float32 in -1..1 of an RGB picture, as the VAE's encoder takes it."""
    unit = np.asarray(image, np.float32) / 255
    return np.ascontiguousarray(unit.transpose(2, 0, 1)[None] * 2 - 1)


def open_mask(source: ImageInput, width: int, height: int, mode: str = "stretch") -> np.ndarray:
    """(1, 1, height, width) float32: 1 where a mask is bright and painting happens, else 0.

    Raises: see open_image.
    """
    grey = resize(open_image(source).convert("L"), width, height, mode)
    return (np.asarray(grey, np.float32) / 255 >= 0.5).astype(np.float32)[None, None]


def to_uint8(sample: np.ndarray) -> np.ndarray:
    """Decoded samples as pixels.

    Args:
      sample: (B, 3, H, W) float32, nominally -1..1; values beyond are clipped.
    Returns: (B, H, W, 3) uint8.
    """
    count, channels, height, width = sample.shape
    pixels = np.empty((count, height, width, channels), np.uint8)
    for i, c in np.ndindex(count, channels):  # one plane at a time, for the memory
        plane = sample[i, c] / 2
        plane += 0.5
        np.clip(plane, 0, 1, out=plane)
        plane *= 255
        pixels[i, :, :, c] = np.rint(plane, out=plane)
    return pixels


def to_image(pixels: np.ndarray, parameters: Parameters | None = None) -> Image.Image:
    """A Pillow image of (H, W, 3) uint8; the parameters go into `image.info["parameters"]`."""
    image = Image.fromarray(pixels)
    if parameters is not None:
        image.info["parameters"] = str(parameters)
    return image


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a PNG with the image's `parameters` text, under a temporary name first.

    Raises: OSError: the folder is missing or cannot be written.
    """
    path = Path(path)
    text = PngImagePlugin.PngInfo()
    if "parameters" in image.info:
        text.add_text("parameters", image.info["parameters"])
    with atomic_write(path) as file:
        image.save(file, format="PNG", pnginfo=text)
