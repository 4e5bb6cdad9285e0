"""Recognises coloured shapes in an image by plain image analysis, without a neural network.

The background is the most common palette colour of the border. The objects are the connected
regions that differ from it, and each is taken for the shape whose outline overlaps it best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sdexport.demo_model import dataset

SIZE_LIMIT = sum((dataset.SIZES["small"][1], dataset.SIZES["large"][0])) / 2
"""Circumradius in pixels that separates small from large: the middle of the gap."""
FAR = 60.0
"""Pixels at a larger RGB distance from the background belong to an object. Yellow and orange, the
two closest colours, are 82 apart."""
SMALLEST_AREA = 60
LEAST_OVERLAP = 0.6
"""A region with less intersection over union than this is none of the shapes."""
NAMES = tuple(dataset.COLOURS)
_PALETTE = np.array(list(dataset.COLOURS.values()), dtype=np.float64)


@dataclass(frozen=True)
class Detected:
    """A detected object: names as in `dataset`, centre and circumradius in pixels.

    overlap: intersection over union with the outline of the shape, 0..1.
    """

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    overlap: float


def nearest_colours(pixels: np.ndarray) -> np.ndarray:
    """Index into NAMES of the palette colour that is closest to each pixel.

    Args:
      pixels: (..., 3), 0..255.
    Returns: (...) integers.
    """
    distances = np.linalg.norm(pixels[..., None, :].astype(np.float64) - _PALETTE, axis=-1)
    return np.asarray(distances.argmin(axis=-1))


def detect(image: np.ndarray) -> tuple[str, list[Detected]]:
    """The name of the background's colour, and the objects, largest first.

    Args:
      image: (H, W, 3) uint8.
    """
    border = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3)])
    border = np.concatenate([border, image[:, :3].reshape(-1, 3), image[:, -3:].reshape(-1, 3)])
    background = int(np.bincount(nearest_colours(border), minlength=len(NAMES)).argmax())
    middle = np.median(border[nearest_colours(border) == background], axis=0)
    mask = np.linalg.norm(image.astype(np.float64) - middle, axis=-1) > FAR
    objects = [_describe(image, region) for region in regions(mask)]
    return NAMES[background], sorted(objects, key=lambda s: -s.radius)


def regions(mask: np.ndarray) -> list[np.ndarray]:
    """Connected regions (four neighbours) of SMALLEST_AREA or more, each as a mask."""
    labels, count = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    return [labels == i for i in range(1, count + 1) if areas[i] >= SMALLEST_AREA]


def _describe(image: np.ndarray, region: np.ndarray) -> Detected:
    colours = np.bincount(nearest_colours(image[region]), minlength=len(NAMES))
    best = max((fit(region, kind) for kind in dataset.SHAPES), key=lambda fit: fit[0])
    overlap, shape = best
    return Detected(
        colour=NAMES[int(colours.argmax())],
        shape=shape.kind if overlap >= LEAST_OVERLAP else "unclear",
        size="small" if shape.radius < SIZE_LIMIT else "large",
        x=shape.x,
        y=shape.y,
        radius=shape.radius,
        overlap=overlap,
    )


def fit(region: np.ndarray, kind: str) -> tuple[float, dataset.Shape]:
    """The overlap with the best shape of a kind that has the region's area and centre."""
    ys, xs = np.nonzero(region)
    corners = dataset.outline(kind)
    area = np.pi
    if len(corners):
        x, y = corners.T
        area = 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))
    radius = float(np.sqrt(len(ys) / area))
    best = (0.0, dataset.Shape(kind, (0, 0, 0), xs.mean() + 0.5, ys.mean() + 0.5, radius))
    for angle in (0.0,) if kind == "circle" else np.linspace(-0.2, 0.2, 9):
        shape = dataset.Shape(kind, (0, 0, 0), best[1].x, best[1].y, radius, float(angle))
        drawn = dataset.coverage(shape, region.shape[0]) > 0.5
        overlap = float((drawn & region).sum() / (drawn | region).sum())
        if overlap > best[0]:
            best = (overlap, shape)
    return best


def judge_single(image: np.ndarray, single: dataset.Single) -> dict[str, bool]:
    """Which parts of a caption of one object are right.

    With more than one object in the image only the background can be right.
    """
    background, objects = detect(image)
    one = objects[0] if len(objects) == 1 else None
    return {
        "colour": one is not None and one.colour == single.colour,
        "background": background == single.background,
        "shape": one is not None and one.shape == single.shape,
        "size": one is not None and one.size == single.size,
    }


def judge_pair(image: np.ndarray, pair: dataset.Pair) -> dict[str, bool]:
    """Which parts of a caption of two objects are right."""
    background, objects = detect(image)
    right = {"background": background == pair.background, "objects": False, "relation": False}
    if len(objects) == 2:
        dx, dy = dataset.RELATIONS[pair.relation]
        first, second = sorted(objects, key=lambda s: -(s.x * dx + s.y * dy))
        across = abs((first.x - second.x) * dy) + abs((first.y - second.y) * dx)
        along = (first.x - second.x) * dx + (first.y - second.y) * dy
        found = [(s.colour, s.shape) for s in (first, second)]
        right["objects"] = sorted(found) == sorted([pair.first, pair.second])
        right["relation"] = found == [pair.first, pair.second] and along > across
    return right
