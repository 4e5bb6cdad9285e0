"""The types of control images that a ControlNet-Union knows, and their names.

A network numbers its types; only those of the published networks have names.

Source: the configurations and descriptions of xinsir/controlnet-union-sdxl-1.0, which has 6 types,
and of its promax variant, which has 8.
"""

from __future__ import annotations

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.engines.session import TensorSpec
from sdexport.runtime.models.controlnet import CONTROL_TYPE

_NAMES = (
    ("openpose",),
    ("depth",),
    ("hed", "pidi", "scribble", "ted"),
    ("canny", "lineart", "anime_lineart", "mlsd"),
    ("normal",),
    ("segment",),
    ("tile",),
    ("repaint",),
)
"""Names of each type, by its number."""
_PUBLISHED = (6, 8)
"""Numbers of types of the published networks."""
MOST_TYPES = 1024


def names_of(types: int) -> tuple[tuple[str, ...], ...]:
    """The names of each type of a network with so many types; empty if they are not known."""
    return _NAMES[:types] if types in _PUBLISHED else ()


def listed_types(types: int) -> str:
    """The types of a network for people, such as "0 openpose, 1 depth"."""
    names = names_of(types)
    if not names:
        return f"0 to {types - 1}"
    return ", ".join(f"{i} {'/'.join(each)}" for i, each in enumerate(names))


def type_number(mode: str | int, types: int, what: str) -> int:
    """The number of a type that is given by number or name.

    Args:
      types: of the network. what: the argument and the package, for the message.
    Raises: InvalidArgumentError: the network has no such type.
    """
    if isinstance(mode, int) and 0 <= mode < types:
        return mode
    if isinstance(mode, str):
        wanted = mode.strip().lower().replace("-", "_").replace(" ", "_")
        for number, names in enumerate(names_of(types)):
            if wanted in names:
                return number
    raise InvalidArgumentError(
        f"{what} has no mode {shown(mode)}; expected one of {listed_types(types)}"
    )


def types_of(inputs: tuple[TensorSpec, ...] | list[TensorSpec]) -> int:
    """How many types a graph of a ControlNet takes; 0 of one that is no ControlNet-Union.

    Raises: ValueError: an input for types of another form.
    """
    for spec in inputs:
        if spec.name == CONTROL_TYPE:
            types = spec.shape[1] if len(spec.shape) == 2 else None
            if (
                spec.dtype != "float32"
                or not isinstance(types, int)
                or not 1 <= types <= MOST_TYPES
            ):
                raise ValueError(f"its input {CONTROL_TYPE} has the shape {shown(spec.shape)}")
            return types
    return 0
