"""What is on a picture of coloured shapes? Plain image analysis, no network.

The background is the commonest palette colour of the border, the objects are connected regions
that differ from it, and a region's kind is the shape whose outline overlaps it best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sdexport.demo_model import dataset

SIZE_LIMIT = sum((dataset.SIZES["small"][1], dataset.SIZES["large"][0])) / 2
"""Circumradius in pixels between small and large: the middle of the gap."""
FAR = 60.0
"""Distance in RGB from the background from which a pixel belongs to an object. The closest two
colours of the palette, yellow and orange, are 82 apart."""
SMALLEST_AREA = 60
LEAST_OVERLAP = 0.6
"""Intersection over union below which a region is no shape at all."""
NAMES = tuple(dataset.COLOURS)
_PALETTE = np.array(list(dataset.COLOURS.values()), dtype=np.float64)


@dataclass(frozen=True)
class Seen:
    """One object: names from the dataset, centre and circumradius in pixels, overlap 0..1."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    overlap: float


def nearest_colours(pixels: np.ndarray) -> np.ndarray:
    """Index into NAMES of the palette colour closest to each pixel (..., 3)."""
    distances = np.linalg.norm(pixels[..., None, :].astype(np.float64) - _PALETTE, axis=-1)
    return np.asarray(distances.argmin(axis=-1))


def look(picture: np.ndarray) -> tuple[str, list[Seen]]:
    """The background's colour and the objects, largest first.

    Args:
      picture: (H, W, 3) uint8.
    """
    border = np.concatenate([picture[:3].reshape(-1, 3), picture[-3:].reshape(-1, 3)])
    border = np.concatenate([border, picture[:, :3].reshape(-1, 3), picture[:, -3:].reshape(-1, 3)])
    background = int(np.bincount(nearest_colours(border), minlength=len(NAMES)).argmax())
    middle = np.median(border[nearest_colours(border) == background], axis=0)
    mask = np.linalg.norm(picture.astype(np.float64) - middle, axis=-1) > FAR
    seen = [_describe(picture, region) for region in _regions(mask)]
    return NAMES[background], sorted(seen, key=lambda s: -s.radius)


def _regions(mask: np.ndarray) -> list[np.ndarray]:
    """Connected regions (four neighbours) of a mask that are large enough, each as a mask."""
    labels, count = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    return [labels == i for i in range(1, count + 1) if areas[i] >= SMALLEST_AREA]


def _describe(picture: np.ndarray, region: np.ndarray) -> Seen:
    colours = np.bincount(nearest_colours(picture[region]), minlength=len(NAMES))
    best = max((_fit(region, kind) for kind in dataset.SHAPES), key=lambda fit: fit[0])
    overlap, shape = best
    return Seen(
        colour=NAMES[int(colours.argmax())],
        shape=shape.kind if overlap >= LEAST_OVERLAP else "unclear",
        size="small" if shape.radius < SIZE_LIMIT else "large",
        x=shape.x,
        y=shape.y,
        radius=shape.radius,
        overlap=overlap,
    )


def _fit(region: np.ndarray, kind: str) -> tuple[float, dataset.Shape]:
    """The shape of a kind with the region's area and centre that overlaps it best."""
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


def judge_single(picture: np.ndarray, single: dataset.Single) -> dict[str, bool]:
    """Which promises of a one-object caption the picture keeps; more than one object keeps none."""
    background, seen = look(picture)
    one = seen[0] if len(seen) == 1 else None
    return {
        "colour": one is not None and one.colour == single.colour,
        "background": background == single.background,
        "shape": one is not None and one.shape == single.shape,
        "size": one is not None and one.size == single.size,
    }


def judge_pair(picture: np.ndarray, pair: dataset.Pair) -> dict[str, bool]:
    """Which promises of a two-object caption the picture keeps."""
    background, seen = look(picture)
    kept = {"background": background == pair.background, "objects": False, "relation": False}
    if len(seen) == 2:
        dx, dy = dataset.RELATIONS[pair.relation]
        first, second = sorted(seen, key=lambda s: -(s.x * dx + s.y * dy))
        across = abs((first.x - second.x) * dy) + abs((first.y - second.y) * dx)
        along = (first.x - second.x) * dx + (first.y - second.y) * dy
        found = [(s.colour, s.shape) for s in (first, second)]
        kept["objects"] = sorted(found) == sorted([pair.first, pair.second])
        kept["relation"] = found == [pair.first, pair.second] and along > across
    return kept
