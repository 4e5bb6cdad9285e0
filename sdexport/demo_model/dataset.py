"""Coloured shapes with captions: the training data of the demo model.

Everything is a pure function of a NumPy Generator, so the seed determines the data. One sixth of
the combinations, chosen by hash, is held out for the evaluation: `sample_scene` never draws them.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, replace

import numpy as np

IMAGE_SIZE = 128
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 220, 50),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES: dict[str, tuple[float, float]] = {"small": (15.0, 21.0), "large": (38.0, 48.0)}
"""Circumradius in pixels, lowest and highest."""
RELATIONS: dict[str, tuple[float, float]] = {
    "above": (0.0, -1.0),
    "below": (0.0, 1.0),
    "left of": (-1.0, 0.0),
    "right of": (1.0, 0.0),
}
"""Direction (x, y) from the second object to the first; y points down."""
OPPOSITES = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}

SINGLE_WORDINGS = (
    "{a_size} {size} {colour} {shape} on {a_background} {background} background",
    "{size} {colour} {shape}, {background} background",
    "{a_background} {background} background with {a_size} {size} {colour} {shape}",
    "a picture of {a_size} {size} {colour} {shape} on {background}",
)
PAIR_WORDINGS = (
    "{a_first} {first} {relation} {a_second} {second}",
    "{a_first} {first} {relation} {a_second} {second} on {a_background} {background} background",
    "a picture of {a_first} {first} {relation} {a_second} {second} on {background}",
)

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Shape:
    """One object: `radius` is the circumradius in pixels, `angle` in radians, clockwise."""

    kind: str
    colour: Rgb
    x: float
    y: float
    radius: float
    angle: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A background colour and the objects on it, drawn in this order."""

    background: Rgb
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Single:
    """What the caption of one object describes."""

    size: str
    colour: str
    shape: str
    background: str


@dataclass(frozen=True)
class Pair:
    """What the caption of two objects describes: (colour, shape) `relation` (colour, shape)."""

    first: tuple[str, str]
    relation: str
    second: tuple[str, str]
    background: str


def article(word: str) -> str:
    """The indefinite article for a word."""
    return "an" if word[0] in "aeiou" else "a"


def _held_out(key: tuple[object, ...], one_in: int) -> bool:
    return zlib.crc32(repr(key).encode()) % one_in == 0


def all_singles(*, held_out: bool) -> list[Single]:
    """Every combination of one object and a background of another colour.

    Args:
      held_out: those for the evaluation, instead of those for training.
    """
    every = (
        Single(*names)
        for names in itertools.product(SIZES, COLOURS, SHAPES, COLOURS)
        if names[1] != names[3]
    )
    return [s for s in every if _held_out((s.size, s.colour, s.shape, s.background), 6) == held_out]


def pair_is_held_out(pair: Pair) -> bool:
    """Whether the pair is left out of training, on every background."""
    return _held_out((pair.first, pair.relation, pair.second), 6)


def random_pair(rng: np.random.Generator, *, held_out: bool) -> Pair:
    """A random combination of two objects of different colours on a third colour.

    Args:
      held_out: one for the evaluation, instead of one for training.
    """
    names, kinds, relations = list(COLOURS), list(SHAPES), list(RELATIONS)
    while True:
        c1, c2, background = (names[i] for i in rng.choice(len(names), 3, replace=False))
        k1, k2 = (kinds[i] for i in rng.integers(len(kinds), size=2))
        pair = Pair((c1, k1), relations[rng.integers(4)], (c2, k2), background)
        if pair_is_held_out(pair) == held_out:
            return pair


def swapped(pair: Pair) -> Pair:
    """The pair with its objects in each other's place."""
    return replace(pair, relation=OPPOSITES[pair.relation])


def restated(pair: Pair) -> Pair:
    """The same scene, described from the other object: "a below b" for "b above a"."""
    return Pair(pair.second, OPPOSITES[pair.relation], pair.first, pair.background)


def single_caption(single: Single, wording: int) -> str:
    """Caption number `wording` (0 <= wording < len(SINGLE_WORDINGS)) for a scene of one object."""
    return SINGLE_WORDINGS[wording].format(
        **vars(single), a_size=article(single.size), a_background=article(single.background)
    )


def pair_caption(pair: Pair, wording: int) -> str:
    """Caption number `wording` (0 <= wording < len(PAIR_WORDINGS)) for a scene of two objects."""
    return PAIR_WORDINGS[wording].format(
        first=" ".join(pair.first),
        second=" ".join(pair.second),
        relation=pair.relation,
        background=pair.background,
        a_first=article(pair.first[0]),
        a_second=article(pair.second[0]),
        a_background=article(pair.background),
    )


def short_caption(single: Single, rng: np.random.Generator) -> str:
    """A caption without the size, the background or both."""
    thing = f"{single.colour} {single.shape}"
    where = f" on {article(single.background)} {single.background} background"
    choice = rng.integers(3)
    if choice == 0:
        return f"{article(thing)} {thing}"
    if choice == 1:
        return f"{article(thing)} {thing}{where}"
    return f"{article(single.size)} {single.size} {thing}"


def place_single(single: Single, rng: np.random.Generator) -> Scene:
    """A scene of one object with a random position, radius and slight rotation."""
    radius = rng.uniform(*SIZES[single.size])
    play = (IMAGE_SIZE / 2 - radius - 4) * 0.7
    x, y = IMAGE_SIZE / 2 + rng.uniform(-play, play, 2)
    shape = Shape(single.shape, COLOURS[single.colour], x, y, radius, rng.uniform(-0.12, 0.12))
    return Scene(COLOURS[single.background], (shape,))


def place_pair(pair: Pair, rng: np.random.Generator) -> Scene:
    """A scene of two objects with random positions and radii; they never touch."""
    towards = np.array(RELATIONS[pair.relation])
    aside = towards[::-1]
    shapes = []
    for (colour, kind), sign in ((pair.first, 1), (pair.second, -1)):
        x, y = IMAGE_SIZE / 2 + sign * rng.uniform(28, 33) * towards + rng.uniform(-8, 8) * aside
        radius, angle = rng.uniform(21, 26), rng.uniform(-0.12, 0.12)
        shapes.append(Shape(kind, COLOURS[colour], float(x), float(y), radius, angle))
    return Scene(COLOURS[pair.background], tuple(shapes))


def sample_scene(rng: np.random.Generator) -> tuple[Scene, str]:
    """One training example: 45 % single objects, 10 % with a shortened caption, 45 % pairs."""
    kind = rng.random()
    if kind < 0.55:
        return sample_single(rng, short=kind >= 0.45)
    pair = random_pair(rng, held_out=False)
    return place_pair(pair, rng), pair_caption(pair, int(rng.integers(len(PAIR_WORDINGS))))


def sample_single(rng: np.random.Generator, *, short: bool) -> tuple[Scene, str]:
    """One training example with one object; see captioned_single."""
    single, caption = captioned_single(rng, short=short)
    return place_single(single, rng), caption


def captioned_single(rng: np.random.Generator, *, short: bool) -> tuple[Single, str]:
    """One object of the training data; `short` leaves out part of the caption."""
    single = _TRAIN_SINGLES[rng.integers(len(_TRAIN_SINGLES))]
    if short:
        return single, short_caption(single, rng)
    return single, single_caption(single, int(rng.integers(len(SINGLE_WORDINGS))))


def sample_swapped_pairs(rng: np.random.Generator) -> list[tuple[Scene, list[str]]]:
    """Two training examples with two objects, which are in each other's place in the second.

    Returns: each scene with all its captions that are not held out, of one wording.
    """
    while True:
        pair = random_pair(rng, held_out=False)
        if not pair_is_held_out(swapped(pair)):
            break
    wording = int(rng.integers(len(PAIR_WORDINGS)))
    examples = []
    for each in (pair, swapped(pair)):
        statements = [p for p in (each, restated(each)) if not pair_is_held_out(p)]
        captions = [pair_caption(p, wording) for p in statements]
        examples.append((place_pair(each, rng), captions))
    return examples


def recolour(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same scene in random RGB colours, so that the VAE learns more than the palette."""

    def colour() -> Rgb:
        r, g, b = (int(v) for v in rng.integers(0, 256, 3))
        return r, g, b

    shapes = tuple(Shape(**{**vars(s), "colour": colour()}) for s in scene.shapes)
    return Scene(colour(), shapes)


def outline(kind: str) -> np.ndarray:
    """Corners (N, 2) of a shape of circumradius 1, y down; none for the circle."""
    if kind == "circle":
        return np.zeros((0, 2))
    count, inner = {"square": (4, None), "triangle": (3, None), "star": (5, 0.42)}[kind]
    steps = count if inner is None else 2 * count
    start = -np.pi / 4 if kind == "square" else -np.pi / 2
    angles = start + 2 * np.pi * np.arange(steps) / steps
    radii = np.where(np.arange(steps) % 2 == 0, 1.0, inner or 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def coverage(shape: Shape, size: int = IMAGE_SIZE) -> np.ndarray:
    """How much of each pixel the shape covers: (size, size) float32, 0..1.

    Computed from the signed distance to the outline, so that edges are anti-aliased.
    """
    return np.clip(0.5 - _distance(shape, size), 0.0, 1.0).astype(np.float32)


def render_outlines(scene: Scene, size: int = IMAGE_SIZE) -> np.ndarray:
    """The outlines of a scene's shapes: white lines of two pixels on black, like render."""
    lines = [1.5 - np.abs(_distance(shape, size)) for shape in scene.shapes]
    white = np.clip(np.max(lines, axis=0), 0.0, 1.0) * 255
    return np.repeat(np.rint(white).astype(np.uint8)[..., None], 3, axis=2)


def _distance(shape: Shape, size: int) -> np.ndarray:
    """Signed distance (negative inside) from every pixel's centre to the shape's outline."""
    ys, xs = np.mgrid[0:size, 0:size] + 0.5
    px, py = xs - shape.x, ys - shape.y
    if shape.kind == "circle":
        return np.asarray(np.hypot(px, py) - shape.radius)
    return _polygon_distance(px, py, _rotated(outline(shape.kind), shape))


def _rotated(corners: np.ndarray, shape: Shape) -> np.ndarray:
    cos, sin = np.cos(shape.angle), np.sin(shape.angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    return np.asarray(corners @ turn * shape.radius)


def _polygon_distance(px: np.ndarray, py: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside) from every point to a closed polygon."""
    nearest = np.full(px.shape, np.inf)
    inside = np.zeros(px.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((px - ax) * ex + (py - ay) * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        nearest = np.minimum(nearest, (px - ax - along * ex) ** 2 + (py - ay - along * ey) ** 2)
        crosses = (ay > py) != (by > py)
        if ey:
            inside ^= crosses & (px < (py - ay) * ex / ey + ax)
    return np.where(inside, -1.0, 1.0) * np.sqrt(nearest)


def render(scene: Scene, size: int = IMAGE_SIZE) -> np.ndarray:
    """Draw a scene: (size, size, 3) uint8."""
    canvas = np.empty((size, size, 3), dtype=np.float32)
    canvas[:] = scene.background
    for shape in scene.shapes:
        alpha = coverage(shape, size)[..., None]
        canvas += alpha * (np.asarray(shape.colour, dtype=np.float32) - canvas)
    return np.rint(canvas).astype(np.uint8)


_TRAIN_SINGLES = all_singles(held_out=False)
