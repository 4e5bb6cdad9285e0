"""Control images for ControlNet, computed from an image without a neural network.

    from sdexport import preprocessors

    edges = preprocessors.canny("house.png", low=100, high=200)

Each function takes one image as a pipeline does: a file, a Pillow image or an array. All but
`inpaint` return a Pillow image in RGB. Lines are white on black, as ControlNets for edges, sketches
and line art were trained. Depth maps and poses need a network; docs/control-images.md shows how to
run one.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import checks
from sdexport.runtime.images.canny_edges import canny_edges
from sdexport.runtime.images.filters import gaussian_blur, ridges, soft_edge_strength
from sdexport.runtime.images.loading import ImageInput, load_image
from sdexport.runtime.images.masks import NAME as MASK
from sdexport.runtime.images.masks import THRESHOLD, load_masks
from sdexport.runtime.images.resizing import resize

__all__ = ["METHODS", "canny", "inpaint", "invert", "lineart", "scribble", "soft_edges", "tile"]

METHODS = ("canny", "soft_edges", "scribble", "lineart", "invert", "tile", "inpaint")
"""Names of the functions, in the order of docs/control-images.md."""
MAX_THRESHOLD = 1e6
MAX_RESOLUTION = 8192
_SCALES = (1.0, 2.0, 4.0)
_SOFT_EDGES_WHITE = 0.98
"""Fraction of the pixels that are not white in the soft edges of a detailed image."""
_LEAST_WHITE = 32.0
"""Height of a step, of 255 levels, that is white at least: noise stays dark."""
_STROKE = 3.0
"""Standard deviation of the Gaussians that straighten and thicken the lines of a scribble."""
_STROKE_FROM = 4
"""Level of a blurred line from which it is white; a line of one pixel becomes 12 wide."""
_LINE_SCALE = 6.0
"""Standard deviation of the Gaussian that line art is compared with."""
_LINE_NOISE, _LEAST_LINE = 8, 16
_LINE_LEVEL = 127
"""Level of a line of median contrast."""
_TILE_UNIT = 64


def canny(
    image: ImageInput, low: float = 100, high: float = 200, *, l2_gradient: bool = False
) -> Image.Image:
    """Thin outlines by Canny's method: the pixels of OpenCV's `cv2.Canny(rgb, low, high)`.

    Args:
      low, high: edges begin where the gradient (Sobel, 3x3) is above `high` and go on while it is
        above `low`; 0 or more, in either order.
      l2_gradient: measure the gradient by its Euclidean norm instead of |dx| + |dy|.
    Returns: an RGB image of the same size, white on black.
    Raises: FileNotFoundError: no such file. InvalidArgumentError: no image, or a threshold that is
      out of range.
    Example:
        >>> import numpy as np
        >>> from sdexport import preprocessors
        >>> square = np.zeros((64, 64, 3), np.uint8)
        >>> square[16:48, 16:48] = 255
        >>> edges = preprocessors.canny(square)
        >>> edges.size, edges.getpixel((0, 0)), edges.getpixel((15, 32))
        ((64, 64), (0, 0, 0), (255, 255, 255))
    """
    low = checks.number("low", low, 0, MAX_THRESHOLD)
    high = checks.number("high", high, 0, MAX_THRESHOLD)
    checks.boolean("l2_gradient", l2_gradient)
    return _white(canny_edges(_levels(image), low, high, l2_gradient=l2_gradient))


def soft_edges(image: ImageInput) -> Image.Image:
    """Soft outlines, thicker and brighter the stronger they are: a filter in place of HED.

    The mean of the gradients at three scales (Gaussians of 1, 2 and 4 pixels), of which the
    strongest 2 % of the pixels are white. Unlike the network HED it knows no objects, so that
    textures give edges too.

    Returns: an RGB image of the same size, white on black.
    Raises: see `canny`.
    """
    return _grey(_soft_edges(_levels(image)))


def scribble(image: ImageInput, threshold: float = 64) -> Image.Image:
    """Strokes as by a felt-tip pen along the outlines: soft edges, thinned and thickened.

    For a drawing with dark lines on white paper use `invert`.

    Args:
      threshold: level of the blurred soft edges from which they give a stroke, 0..255; lower for
        more strokes.
    Returns: an RGB image of the same size, white on black.
    Raises: see `canny`.
    """
    threshold = checks.number("threshold", threshold, 0, 255)
    blurred = gaussian_blur(_soft_edges(_levels(image)).astype(np.float32), _STROKE)
    lines = ridges(blurred) & (blurred > threshold)
    strokes = gaussian_blur(lines.astype(np.float32) * 255, _STROKE)
    return _white(np.rint(strokes) > _STROKE_FROM)


def lineart(image: ImageInput) -> Image.Image:
    """Dark lines of a drawing or a photo, white on black: what is darker than its surroundings.

    The difference to the image blurred by 6 pixels; lines of median contrast are half bright.

    Returns: an RGB image of the same size.
    Raises: see `canny`.
    """
    values = _levels(image).astype(np.float32)
    darker = (gaussian_blur(values, _LINE_SCALE) - values).min(axis=2)
    np.clip(darker, 0, 255, out=darker)
    lines = darker[darker > _LINE_NOISE]
    contrast = max(float(np.median(lines)), _LEAST_LINE) if lines.size else _LEAST_LINE
    darker *= np.float32(_LINE_LEVEL / contrast)
    return _grey(np.clip(darker, 0, 255).astype(np.uint8))


def invert(image: ImageInput) -> Image.Image:
    """The negative: a drawing of dark lines on white paper becomes white on black.

    Returns: an RGB image of the same size.
    Raises: see `canny`.
    """
    return Image.fromarray(255 - _levels(image))


def tile(
    image: ImageInput, *, resolution: int | None = None, downsample: float = 1.0
) -> Image.Image:
    """The image itself for a tile ControlNet, which adds detail to it.

    Args:
      resolution: of the shorter side, from which both sides are rounded to multiples of 64, by a
        Lanczos filter; default the size that the image has.
      downsample: first take away detail: average over this many pixels, 1..64.
    Returns: an RGB image.
    Raises: see `canny`.
    """
    if resolution is not None:
        checks.integer("resolution", resolution, _TILE_UNIT, MAX_RESOLUTION)
    downsample = checks.number("downsample", downsample, 1, 64)
    result = load_image(image)
    if downsample > 1:
        size = [max(1, int(side / downsample)) for side in result.size]
        result = result.resize((size[0], size[1]), Image.Resampling.BOX)
    if resolution is None:
        return result
    scale = resolution / min(result.size)
    width, height = (round(side * scale / _TILE_UNIT) * _TILE_UNIT for side in result.size)
    if max(width, height) > MAX_RESOLUTION:
        raise InvalidArgumentError(
            f"resolution {resolution} would make the image {width}x{height} pixels; at most "
            f"{MAX_RESOLUTION} on each side"
        )
    return resize(result, width, height)


def inpaint(image: ImageInput, mask_image: ImageInput) -> np.ndarray:
    """The control image of an inpainting ControlNet: the image, -1 where the mask is bright.

    Args:
      mask_image: bright (128 or more of 255) where new content is generated, as in a pipeline;
        resized to the image's size.
    Returns: (1, 3, H, W) float32, 0..1, and -1 where masked.
    Raises: see `canny`.
    """
    levels, masks = _levels(image), load_masks(mask_image)
    if len(masks) != 1:
        raise InvalidArgumentError(f"{MASK}: expected one mask, got {len(masks)}")
    mask = masks[0].convert("L")
    size = levels.shape[1], levels.shape[0]
    if mask.size != size:
        mask = resize(mask, *size)
    values = levels.astype(np.float32) / np.float32(255)
    values[np.asarray(mask) >= THRESHOLD] = -1
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def _levels(image: ImageInput) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(load_image(image))


def _soft_edges(levels: np.ndarray) -> np.ndarray:
    """(H, W) uint8."""
    strength = soft_edge_strength(levels, _SCALES)
    white = max(float(np.quantile(strength, _SOFT_EDGES_WHITE)), _LEAST_WHITE)
    return np.clip(strength * np.float32(255 / white), 0, 255).astype(np.uint8)


def _white(where: np.ndarray) -> Image.Image:
    """An RGB image that is white where an array (H, W) is True."""
    return _grey(where * np.uint8(255))


def _grey(levels: np.ndarray) -> Image.Image:
    """An RGB image of grey levels (H, W) uint8."""
    return Image.fromarray(np.repeat(levels[..., None], 3, axis=2))
