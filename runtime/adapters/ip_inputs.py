"""The inputs of a UNet's graph that takes IP-Adapters.

Every layer with cross-attention takes keys and values of images, in addition to those of the text:

    ip_adapter.LAYER.key      (batch, groups, tokens, width)
    ip_adapter.LAYER.value    (batch, groups, tokens, width)
    ip_adapter.bias           (groups, tokens): added to the scores of all layers
    ip_adapter.weights_LEVEL  (groups, positions): multiplied by a group's result

A group is an attention of its own: the images of one adapter, or one image with a mask. A group
with fewer tokens than another is filled up with some that the bias excludes. A layer's scale is in
its values, a mask in the weights of its level.

Source: Ye et al. 2023, arXiv 2308.06721, eq. 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sdexport.engines.session import TensorSpec
from sdexport.runtime.models.components import IP_INPUT, positions_dimension

KEY, VALUE = "key", "value"
BIAS = f"{IP_INPUT}bias"
GROUPS, TOKENS = "ip_adapter_groups", "ip_adapter_tokens"
"""Named dimensions."""
EXCLUDED = -1e30
"""The bias of a token that is none; softmax makes it 0."""
_NAME = re.compile(rf"{re.escape(IP_INPUT)}(?P<layer>.+)\.(?P<which>key|value)")
_WEIGHTS = re.compile(rf"{re.escape(IP_INPUT)}weights_(?P<level>\d{{1,2}})")
_ORDER = ("down_blocks", "up_blocks", "mid_block")


@dataclass(frozen=True)
class ImageLayer:
    """A layer with cross-attention to images.

    name: as the checkpoint's module calls it. width: of its keys and values, heads included.
    """

    name: str
    width: int

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Of its keys and values."""
        return ("batch", GROUPS, TOKENS, self.width)


def is_row_input(name: str) -> bool:
    """Whether it has a row for each row of the batch."""
    return _NAME.fullmatch(name) is not None


def input_name(layer: str, which: str) -> str:
    """The input of a layer's KEY or VALUE."""
    return f"{IP_INPUT}{layer}.{which}"


def weights_name(level: int) -> str:
    """The input of the weights of a level of the UNet."""
    return f"{IP_INPUT}weights_{level}"


def weights_shape(level: int) -> tuple[int | str, ...]:
    """Its shape."""
    return GROUPS, positions_dimension(level)


def image_layers(specs: Iterable[TensorSpec]) -> list[ImageLayer]:
    """The layers of a graph that take images, in the order in which files number them.

    Args:
      specs: of all inputs of the graph.
    Raises: ValueError: inputs that this module does not describe.
    """
    found: dict[str, dict[str, TensorSpec]] = {}
    for spec in specs:
        match = _NAME.fullmatch(spec.name)
        if match is not None:
            found.setdefault(match["layer"], {})[match["which"]] = spec
    layers = []
    for name, pair in found.items():
        width = next(iter(pair.values())).shape[-1:]
        layer = ImageLayer(name, width[0] if width and isinstance(width[0], int) else 0)
        expected = dict.fromkeys((KEY, VALUE), ("float32", layer.shape))
        if expected != {which: (spec.dtype, spec.shape) for which, spec in pair.items()}:
            raise ValueError(f"its inputs for {name:.80} are no keys and values of images")
        layers.append(layer)
    return sorted(layers, key=lambda layer: _place(layer.name))


def weight_levels(specs: Iterable[TensorSpec]) -> list[int]:
    """The levels whose weights are inputs of a graph."""
    matches = (_WEIGHTS.fullmatch(spec.name) for spec in specs)
    return [int(match["level"]) for match in matches if match is not None]


def _place(layer: str) -> tuple[int, ...]:
    """Where diffusers has a layer: the way down, the way up, the middle."""
    block = layer.partition(".")[0]
    order = _ORDER.index(block) if block in _ORDER else len(_ORDER)
    return (order, *map(int, re.findall(r"(?<=\.)\d+", layer)))
