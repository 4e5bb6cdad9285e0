"""The styles of the demo model's LoRAs: training images, and how much of a style an image has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sdexport.demo_model import dataset
from sdexport.demo_model.dataset import Rgb, Scene, Shape

STYLES = ("striped", "soft")
STRIPE = 0.5
"""Half the height of the stripe across the middle of an object, as a share of its radius."""
SOFTNESS = 0.5
"""How far the soft colours are from the full ones to SOFT_GREY."""
SOFT_GREY = 160


def render_in_style(scene: Scene, style: str, amount: float = 1.0) -> np.ndarray:
    """Draw a scene in one of STYLES: (128, 128, 3) uint8.

    Args:
      amount: of the style, see style_amount.
    """
    render = _render_soft if style == "soft" else _render_striped
    return render(scene, amount)


def _render_soft(scene: Scene, amount: float) -> np.ndarray:
    def soft(colour: Rgb) -> Rgb:
        return blend(colour, soft_colour(colour), amount)

    shapes = tuple(replace(shape, colour=soft(shape.colour)) for shape in scene.shapes)
    return dataset.render(Scene(soft(scene.background), shapes))


def blend(colour: Rgb, other: Rgb, share: float) -> Rgb:
    """A colour with a share of another one in it."""
    r, g, b = (round(a + share * (b - a)) for a, b in zip(colour, other, strict=True))
    return r, g, b


def soft_colour(colour: Rgb) -> Rgb:
    """The colour that takes the place of a colour in the soft style."""
    return blend(colour, (SOFT_GREY,) * 3, SOFTNESS)


def stripe_colour(colour: Rgb, background: Rgb) -> Rgb:
    """The colour of the stripe across an object: darker or lighter than its own.

    Of the two, the one that is further from the background.
    """
    own = np.array(colour, dtype=float)
    tones = [own + 0.5 * (np.array(grey) - own) for grey in (0.0, 255.0)]
    far = [
        min(np.linalg.norm(tone - own), np.linalg.norm(tone - np.array(background)))
        for tone in tones
    ]
    r, g, b = (round(float(value)) for value in tones[int(np.argmax(far))])
    return r, g, b


def in_stripe(shape: Shape) -> np.ndarray:
    """Which rows of an image are in the stripe across a shape: (IMAGE_SIZE, 1) bool."""
    rows = np.arange(dataset.IMAGE_SIZE)[:, None] + 0.5
    return np.abs(rows - shape.y) < STRIPE * shape.radius


def _render_striped(scene: Scene, amount: float) -> np.ndarray:
    def tone(colour: Rgb) -> Rgb:
        return blend(colour, stripe_colour(colour, scene.background), amount)

    tones = tuple(replace(shape, colour=tone(shape.colour)) for shape in scene.shapes)
    striped = [in_stripe(shape) & (dataset.coverage(shape) > 0) for shape in scene.shapes]
    other = dataset.render(replace(scene, shapes=tones))
    return np.where(np.any(striped, axis=0)[..., None], other, dataset.render(scene))


def style_amount(image: np.ndarray, scene: Scene, style: str) -> float:
    """How much of a style an image of a scene has: about 0 without it, about 1 with all of it.

    Args:
      image: (128, 128, 3) uint8, with the scene's shapes where the scene has them.
    """
    return _soft_amount(image, scene) if style == "soft" else _striped_amount(image, scene)


def _striped_amount(image: np.ndarray, scene: Scene) -> float:
    amounts = []
    for shape in scene.shapes:
        stripe = in_stripe(shape)
        inside = dataset.coverage(replace(shape, radius=0.8 * shape.radius)) > 0.5
        change = np.subtract(stripe_colour(shape.colour, scene.background), shape.colour)
        along = image.astype(float) @ change / float(change @ change)
        amounts.append(along[inside & stripe].mean() - along[inside & ~stripe].mean())
    return float(np.mean(amounts))


def _soft_amount(image: np.ndarray, scene: Scene) -> float:
    covered = np.max([dataset.coverage(shape) for shape in scene.shapes], axis=0)
    areas = [(covered == 0, scene.background)]
    for shape in scene.shapes:
        inside = dataset.coverage(replace(shape, radius=0.8 * shape.radius)) > 0.5
        areas.append((inside, shape.colour))
    amounts = []
    for area, colour in areas:
        change = np.subtract(soft_colour(colour), colour)
        found = np.median(image[area].astype(float), axis=0) - colour
        amounts.append(found @ change / float(change @ change))
    return float(np.mean(amounts))
