"""Scenarios of single files: images, animations, embeddings, reports, keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sdexport.engines.files import write_atomically
from sdexport.runtime.images.metadata import save_image
from sdexport.runtime.images.preview import save_animation
from sdexport.runtime.text.embeds_file import load_embeds, save_embeds
from tests.faults.scenario import NEW, NOTHING, OLD, Action, Scenario, empty

SIZE = 200
"""Of images, in pixels: noise of this size takes several writes."""
SECRET_ALONE = "the secret key alone"
"""The state of a pair of keys after a process was killed between its two files."""


def _noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.info["parameters"] = f"image {seed}" * 1000
    return image


def _save_image(name: str, seed: int, folder: Path) -> None:
    save_image(_noise(seed), folder / name)


def _save_animation(name: str, seed: int, folder: Path) -> None:
    save_animation([_noise(seed), _noise(seed + 10)], folder / name)


def _save_report(seed: int, folder: Path) -> None:
    """As `sdexport verify --html` writes it."""
    write_atomically(folder / "report.html", f"<p>{seed}</p>\n" * 10_000)


def _save_embeds(seed: int, folder: Path) -> None:
    values = np.random.default_rng(seed).standard_normal((1, 77, 768), np.float32)
    save_embeds(folder / "prompt.npz", values, prompt=str(seed))


def _embeds_state(folder: Path) -> str:
    return {"1": OLD, "2": NEW}[load_embeds(folder / "prompt.npz").meta["prompt"]]


def _file_scenario(name: str, write: Callable[[int, Path], object]) -> Scenario:
    """A file that holds number 1 before, and number 2 afterwards, byte for byte."""

    def state(folder: Path) -> str:
        if not (folder / name).exists():
            return NOTHING
        expected = folder.parent / f"expected-{name}"
        for number, which in ((1, OLD), (2, NEW)):
            copy = expected / str(number)
            if not copy.exists():
                copy.mkdir(parents=True)
                write(number, copy)
            if (copy / name).read_bytes() == (folder / name).read_bytes():
                return which
        raise AssertionError(f"{name} is a mixture")

    return Scenario(partial(write, 1), lambda: partial(write, 2), state)


def _start_keys() -> Action:
    from sdexport.runtime.packages.key_files import write_key_pair

    return lambda folder: write_key_pair(folder / "my.key", None)


def _keys_state(folder: Path) -> str:
    from sdexport.runtime.packages.minisign import PublicKey, SecretKey

    secret, public = folder / "my.key", folder / "my.pub"
    if not secret.exists():
        assert not public.exists(), "a public key without its secret key"
        return NOTHING
    key = SecretKey.read(secret, str)
    assert secret.stat().st_mode & 0o777 == 0o600, "others can read the secret key"
    if not public.exists():
        return SECRET_ALONE
    assert PublicKey.read(public) == key.public, "the public key of another secret key"
    return NEW


def file_scenarios() -> dict[str, Scenario]:
    found = {}
    for name in ("a.png", "a.jpg", "a.webp"):
        found[f"image {name}"] = _file_scenario(name, partial(_save_image, name))
    for name in ("a.gif", "a.webp"):
        found[f"animation {name}"] = _file_scenario(name, partial(_save_animation, name))
    first = replace(found["image a.png"], prepare=empty, allowed=(NOTHING,))
    return found | {
        "first image": first,
        "embeddings": Scenario(
            partial(_save_embeds, 1), lambda: partial(_save_embeds, 2), _embeds_state
        ),
        "HTML report": _file_scenario("report.html", _save_report),
        "pair of keys": Scenario(empty, _start_keys, _keys_state, (NOTHING, SECRET_ALONE)),
    }
