"""The scale of an IP-Adapter in each layer, from one number or from numbers by block.

The mappings are those of diffusers' set_ip_adapter_scale, such as
{"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}: blocks on the way down and up
and the one in the middle, with one number for each of their attention modules, or one for all. What
a mapping does not name has 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.adapters.adapter_arguments import LARGEST_SCALE

_SIDES = {"down": "down_blocks", "up": "up_blocks"}
_MIDDLE = "mid"
_MODULE = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.attentions\.(\d+)\..+")
_Module = tuple[str, int, int]
"""Side, block and number of an attention module."""


def scale_of_layers(name: str, scale: object, layers: Iterable[str]) -> dict[str, float]:
    """The scale of each layer.

    Args:
      name: what an error message calls the argument.
      layers: names of the layers of the UNet that take images.
    Raises: InvalidArgumentError: a number out of range, or a block that the UNet does not have.
    """
    modules = {layer: _module(layer) for layer in layers}
    if not isinstance(scale, Mapping):
        same = _number(name, scale)
        return dict.fromkeys(modules, same)
    _check_keys(name, scale, [*_SIDES, _MIDDLE])
    found: dict[_Module, float] = {}
    for side in (*_SIDES, _MIDDLE):
        counts = _counts(side, modules.values())
        found |= _of_side(f"{name}[{side!r}]", scale.get(side, 0.0), side, counts)
    return {layer: found[module] for layer, module in modules.items()}


def _of_side(
    name: str, value: object, side: str, counts: Mapping[int, int]
) -> dict[_Module, float]:
    """The scale of each attention module of one side.

    Args:
      counts: the number of modules of each block.
    """
    found: dict[_Module, float] = {}
    if isinstance(value, Mapping) and side == _MIDDLE:
        raise InvalidArgumentError(f"{name} must be a number, got {shown(value)}")
    if isinstance(value, Mapping):
        _check_keys(name, value, [f"block_{block}" for block in counts])
    for block, count in counts.items():
        own = value.get(f"block_{block}", 0.0) if isinstance(value, Mapping) else value
        numbers = list(own) if isinstance(own, (list, tuple)) else [own]
        if len(numbers) not in (1, count):
            few = "1" if count == 1 else f"1 or {count}"
            raise InvalidArgumentError(
                f"{name}: expected {few} scales for block_{block}, got {len(numbers)}"
            )
        numbers = numbers * count if len(numbers) == 1 else numbers
        found |= {(side, block, i): _number(name, each) for i, each in enumerate(numbers)}
    return found


def _number(name: str, value: object) -> float:
    return checks.number(name, value, -LARGEST_SCALE, LARGEST_SCALE)


def _check_keys(name: str, value: Mapping[object, object], known: Sequence[str]) -> None:
    for key in value:
        if key not in known:
            raise InvalidArgumentError(
                f"{name}: no {shown(key)} with image attention; the model has {', '.join(known)}"
            )


def _module(layer: str) -> _Module:
    match = _MODULE.fullmatch(layer)
    if match is None:
        return "", 0, 0
    return match[1] or _MIDDLE, int(match[2] or 0), int(match[3])


def _counts(side: str, modules: Iterable[_Module]) -> dict[int, int]:
    """The number of attention modules of each block of a side that has any."""
    found: dict[int, int] = {}
    for each, block, number in modules:
        if each == side:
            found[block] = max(found.get(block, 0), number + 1)
    return dict(sorted(found.items()))
