"""Canny's edges compared with OpenCV: the same pixels, for any image and any thresholds."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from sdexport.runtime.images.canny_edges import canny_edges
from tests.helpers.random_pictures import KINDS, random_picture

RECORDED = {
    ("noise", 60, 180, False): "046b2007df249f0d",
    ("noise", 200, 500, False): "e243546bdbce2bda",
    ("noise", 150, 300, True): "c7d0a68adee2a97b",
    ("shapes", 40, 120, False): "6c2ddc908671afe3",
    ("shapes", 100, 200, False): "6c2ddc908671afe3",
    ("shapes", 100, 200, True): "1d523db60e06119a",
}
"""The start of the SHA-256 of OpenCV's edges, for machines without it; by kind and arguments."""


@pytest.fixture(scope="module")
def cv2() -> Any:
    return pytest.importorskip("cv2", reason="opencv-python-headless is not installed")


def recorded_picture(kind: str) -> np.ndarray:
    """Made of integers alone, so that it is the same everywhere."""
    levels = random_picture(np.random.default_rng(5), kind, 120, 160)
    rows = (levels[:-1].astype(np.uint16) + levels[1:]) // 2
    return ((rows[:, :-1] + rows[:, 1:]) // 2).astype(np.uint8)


def check(cv2: Any, levels: np.ndarray, low: float, high: float, *, l2: bool) -> None:
    expected = cv2.Canny(levels, low, high, L2gradient=l2)
    actual = canny_edges(levels, low, high, l2_gradient=l2) * np.uint8(255)
    np.testing.assert_array_equal(actual, expected, f"{levels.shape} {low} {high} {l2}")


def random_cases(cv2: Any, count: int, largest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(count):
        height, width = (rng.integers(1, largest + 1, 2)) if rng.random() < 0.9 else (1, 1)
        levels = random_picture(rng, str(rng.choice(KINDS)), int(height), int(width))
        scale = float(rng.choice([30, 300, 1500]))
        low, high = rng.uniform(0, scale, 2).tolist()
        if rng.random() < 0.3:
            low, high = round(low), round(high)
        levels = levels if rng.random() < 0.7 else np.ascontiguousarray(levels[..., 0])
        check(cv2, levels, low, high, l2=bool(rng.random() < 0.5))
        found += canny_edges(levels, low, high).any()
    assert found > count / 4  # else nothing was compared


def test_edges_equal_opencv(cv2: Any) -> None:
    random_cases(cv2, 300, 48, 0)


@pytest.mark.slow
def test_edges_of_many_images_equal_opencv(cv2: Any) -> None:
    random_cases(cv2, 4000, 200, 1)
    random_cases(cv2, 40, 900, 2)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 50), (50, 1), (3, 3)])
def test_edges_of_small_images_equal_opencv(cv2: Any, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        check(cv2, random_picture(rng, "noise", *size), 50, 150, l2=False)


@pytest.mark.parametrize("low", [0, 0.5, 99.999, 100, 5000, 1e6])
@pytest.mark.parametrize("high", [0, 100, 200.5, 40_000])
def test_edges_for_extreme_thresholds_equal_opencv(cv2: Any, low: float, high: float) -> None:
    levels = random_picture(np.random.default_rng(4), "photograph", 40, 60)
    for l2 in (False, True):
        check(cv2, levels, low, high, l2=l2)


@pytest.mark.parametrize(("kind", "low", "high", "l2"), RECORDED)
def test_edges_equal_those_that_were_recorded(kind: str, low: int, high: int, l2: bool) -> None:
    edges = canny_edges(recorded_picture(kind), low, high, l2_gradient=l2)
    found = hashlib.sha256(np.packbits(edges).tobytes()).hexdigest()
    assert found[:16] == RECORDED[kind, low, high, l2]


def test_recorded_edges_are_those_of_opencv(cv2: Any) -> None:
    for kind, low, high, l2 in RECORDED:
        check(cv2, recorded_picture(kind), low, high, l2=l2)


def flooded(candidates: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """Candidates that are connected with a strong one, found one after the other."""
    reached, waiting = np.zeros_like(strong), [tuple(place) for place in np.argwhere(strong)]
    while waiting:
        row, column = waiting.pop()
        if not reached[row, column]:
            reached[row, column] = True
            rows, columns = (slice(max(place - 1, 0), place + 2) for place in (row, column))
            near = np.argwhere(candidates[rows, columns] & ~reached[rows, columns])
            waiting += [(y + rows.start, x + columns.start) for y, x in near]
    return reached


def snake(height: int, width: int) -> np.ndarray:
    """A weak line that winds through the image, with a strong end."""
    levels = np.zeros((height, width), np.uint8)
    for number, row in enumerate(range(4, height - 12, 8)):
        levels[row : row + 4, 4:-4] = 40
        side = slice(width - 8, width - 4) if number % 2 else slice(4, 8)
        levels[row : row + 12, side] = 40
    levels[4:8, -12:-4] = 255
    return levels


@pytest.mark.parametrize(
    ("picture", "low", "high"), [("snake", 50, 600), ("noise", 300, 1000), ("photograph", 60, 900)]
)
def test_edges_go_on_as_far_as_they_are_connected(picture: str, low: int, high: int) -> None:
    levels = snake(140, 100)
    if picture != "snake":
        levels = random_picture(np.random.default_rng(6), picture, 90, 110)
    candidates = canny_edges(levels, low, low)
    strong = candidates & canny_edges(levels, high, high)
    assert strong.any() and strong.sum() < candidates.sum() / 2
    edges = canny_edges(levels, low, high)
    np.testing.assert_array_equal(edges, flooded(candidates, strong))
    assert edges.sum() > strong.sum()
