"""The random numbers of a batch: from seeds, or from the caller's generators."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.noise.torch_generator import TorchGenerator, check_seed

RANDOM_SEED = -1
"""As a seed: draw a random one."""

Seeds = int | Sequence[int] | np.ndarray
Generators = TorchGenerator | Sequence[TorchGenerator]


class ImageNoise:
    """The noise of a batch: from one generator, or from one for each image.

    Args:
      seed: one for the whole batch, or a list with one for each image; None draws a random one for
        each image, and -1 stands for a random one.
      count: images of the batch.
      device: "cpu" or "cuda": whose torch generator is reproduced.
      generator: instead of a seed, one generator or one for each image; it continues its stream.
    Attributes:
      seeds: of each image; None where a seed alone does not give its noise again.
      per_image: whether each image has its own generator.
      device: "cpu" or "cuda".
      was_drawn: whether the images depend on these numbers.
    Raises: InvalidArgumentError: not a seed or a generator, or not one for each image.
    """

    def __init__(
        self,
        seed: Seeds | None,
        count: int,
        device: str = "cpu",
        *,
        generator: Generators | None = None,
    ) -> None:
        self.seeds: list[int | None]
        self.was_drawn = False
        if generator is None:
            self._generators, self.per_image = _from_seed(seed, count, device)
        else:
            _check_alone(seed, device, generator)
            self._generators, self.per_image = _from_caller(generator, count)
        self.device = self._generators[0].device
        seeds = [each.seed if each.restarts_from_seed else None for each in self._generators]
        self.seeds = seeds if self.per_image else seeds * count

    def draw(self, shape: Sequence[int]) -> np.ndarray:
        """Standard normal float32; with a generator for each image, shape[0] is their number."""
        self.was_drawn = True
        if not self.per_image:
            return self._generators[0].randn(shape)
        return np.concatenate([g.randn((1, *shape[1:])) for g in self._generators])


def _from_seed(seed: Seeds | None, count: int, device: str) -> tuple[list[TorchGenerator], bool]:
    """The generators of seeds, and whether each image has its own."""
    if seed is None:
        first = secrets.randbits(32)
        seed = [(first + i) % 2**32 for i in range(count)]
    one = isinstance(seed, str) or not isinstance(seed, (Sequence, np.ndarray)) or not np.ndim(seed)
    seeds = [seed] if one else list(seed)  # type: ignore[arg-type]
    if not one and len(seeds) != count:
        raise InvalidArgumentError(f"got {len(seeds)} seeds for {count} images")
    return [TorchGenerator(_seed(each), device) for each in seeds], not one


def _seed(seed: object) -> int:
    """A checked seed, random for RANDOM_SEED."""
    if isinstance(seed, np.ndarray) and not seed.ndim:
        seed = seed.item()
    number = check_seed(seed)  # type: ignore[arg-type]
    return secrets.randbits(32) if number == RANDOM_SEED % 2**64 else number


def _check_alone(seed: object, device: str, generator: object) -> None:
    """Raises: InvalidArgumentError: an argument that a generator replaces."""
    if seed is not None:
        raise InvalidArgumentError("expected either a seed or a generator")
    first = generator[0] if isinstance(generator, (list, tuple)) and generator else generator
    if device not in ("cpu", getattr(first, "device", "cpu")):
        raise InvalidArgumentError(
            f"noise_device {shown(device)} contradicts the generator, which has a device of its "
            "own: TorchGenerator(seed, 'cuda')"
        )


def _from_caller(generator: object, count: int) -> tuple[list[TorchGenerator], bool]:
    """The caller's generators, and whether each image has its own."""
    several = isinstance(generator, (list, tuple))
    generators: list[TorchGenerator] = []
    for each in generator if isinstance(generator, (list, tuple)) else [generator]:
        if not isinstance(each, TorchGenerator):
            raise InvalidArgumentError(
                "generator: expected sdexport.TorchGenerator(seed), or a list with one for each "
                f"image, got {shown(each)}"
            )
        generators.append(each)
    if several and len(generators) != count:
        raise InvalidArgumentError(f"got {len(generators)} generators for {count} images")
    if len({each.device for each in generators}) > 1:
        raise InvalidArgumentError("generator: all generators must have the same device")
    return generators, several
