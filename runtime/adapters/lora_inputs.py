"""The inputs of a graph that takes LoRAs: their names, shapes, and the layout of the factors.

The graph itself says what it takes: an input for each factor of a layer, whose named dimensions
tell its kind. See sdexport.graphs.lora_branches for what it computes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from sdexport.engines.session import TensorSpec
from sdexport.runtime.models.components import LORA_INPUT

DOWN, UP = "down", "up"
ROWS = "lora_rows"
"""The named dimension of `up` that is 1, or the number of rows in the batch."""
TAKE_LORAS = ("tensorrt-rtx",)
"""Backends that take LoRAs with an engine of the graph that does, built for a range of ranks."""
_NAME = re.compile(r"lora\.(?P<layer>.+)\.(?P<which>down|up)")
_RANK = re.compile(r".+\.rank(_(?P<kernel>\d{1,2}x\d{1,2}))?")


@dataclass(frozen=True)
class LayerShape:
    """A layer that takes the factors of LoRAs.

    name: as the checkpoint's module calls it. inputs, outputs: channels.
    kernel: of a convolution, (height, width); empty for a linear layer.
    """

    name: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()

    @property
    def taps(self) -> int:
        """Places of the kernel."""
        return math.prod(self.kernel)

    def of(self, which: str) -> tuple[int | str, ...]:
        """The shape of the input of a factor, DOWN or UP."""
        rank = f"{self.name}.rank"
        if which == UP:
            last = (self.outputs, rank) if self.kernel else (rank, self.outputs)
            return (ROWS, *last)
        if not self.kernel:
            return self.inputs, rank
        kernel = "x".join(map(str, self.kernel))
        return rank if self.taps == 1 else f"{rank}_{kernel}", self.inputs


def input_name(layer: str, which: str) -> str:
    """The input of a layer's factor, DOWN or UP."""
    return f"{LORA_INPUT}{layer}.{which}"


def is_lora_input(name: str) -> bool:
    """Whether an input of a graph takes a factor."""
    return name.startswith(LORA_INPUT)


def rank_multiple(dimension: str) -> int | None:
    """How many ranks a named dimension counts for one: the taps of a kernel; None for others."""
    match = _RANK.fullmatch(dimension)
    if match is None:
        return None
    return math.prod(map(int, (match["kernel"] or "1").split("x")))


def layer_shapes(specs: Iterable[TensorSpec]) -> dict[str, LayerShape]:
    """The layers whose factors a graph takes, by name.

    Args:
      specs: of all inputs of the graph.
    Raises: ValueError: inputs that `LayerShape` does not describe.
    """
    factors: dict[str, dict[str, TensorSpec]] = {}
    for spec in specs:
        if is_lora_input(spec.name):
            match = _NAME.fullmatch(spec.name)
            if match is None:
                raise ValueError(f"its input {spec.name:.80} is no factor of a LoRA")
            factors.setdefault(match["layer"], {})[match["which"]] = spec
    return {layer: _layer_shape(layer, specs) for layer, specs in factors.items()}


def _layer_shape(layer: str, specs: dict[str, TensorSpec]) -> LayerShape:
    if specs.keys() == {DOWN, UP}:
        down, up = specs[DOWN].shape, specs[UP].shape
        match len(down), len(up), *down, *up:
            case 2, 3, int(inputs), _, _, _, int(outputs):
                found = LayerShape(layer, inputs, outputs)
            case 2, 3, str(rank), int(inputs), _, int(outputs), _:
                match = _RANK.fullmatch(rank)
                kernel = (match and match["kernel"]) or "1x1"
                found = LayerShape(layer, inputs, outputs, tuple(map(int, kernel.split("x"))))
            case _:
                raise ValueError(f"its inputs for {layer:.80} are no factors of a LoRA")
        expected = {which: ("float32", found.of(which)) for which in (DOWN, UP)}
        if expected == {which: (spec.dtype, spec.shape) for which, spec in specs.items()}:
            return found
    raise ValueError(f"its inputs for {layer:.80} are no factors of a LoRA")


def zero_factors(
    specs: Iterable[TensorSpec], rank_of: Callable[[LayerShape], int] = lambda shape: 1
) -> dict[str, np.ndarray]:
    """Factors that change nothing, for all layers of a graph.

    Args:
      specs: of all inputs of the graph.
      rank_of: the rank of a layer's factors; default 1.
    """
    factors = {}
    for layer in layer_shapes(specs).values():
        rank = rank_of(layer)
        down = (rank * layer.taps, layer.inputs) if layer.kernel else (layer.inputs, rank)
        up = (1, layer.outputs, rank) if layer.kernel else (1, rank, layer.outputs)
        factors[input_name(layer.name, DOWN)] = np.zeros(down, np.float32)
        factors[input_name(layer.name, UP)] = np.zeros(up, np.float32)
    return factors


def down_input(down: np.ndarray) -> np.ndarray:
    """The input of a layer's first factor.

    Args:
      down: (rank, inputs) of a linear layer, (rank, inputs, height, width) of a convolution.
    Returns: (inputs, rank); or (rank * height * width, inputs), the taps of each rank together.
    """
    if down.ndim == 2:
        return np.ascontiguousarray(down.T)
    return np.ascontiguousarray(down.transpose(0, 2, 3, 1)).reshape(-1, down.shape[1])


def up_input(up: np.ndarray, *, convolution: bool) -> np.ndarray:
    """The input of a layer's second factor, for all rows of the batch.

    Args:
      up: (outputs, rank), with the LoRA's scale in it.
    Returns: (1, rank, outputs), or (1, outputs, rank) of a convolution.
    """
    return np.ascontiguousarray(up if convolution else up.T)[None]
