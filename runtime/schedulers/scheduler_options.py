"""The options of each scheduler: keys of its configuration, and arguments of its class.

>>> from sdexport.runtime.schedulers.scheduler_options import options_of, parse_option
>>> [option.name for option in options_of("ddim")][-2:]
['set_alpha_to_one', 'eta']
>>> parse_option("solver_order", "3")
3
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers.create import (
    NAMES,
    build_class,
    config_class,
    key_names,
    nearest,
    option_names,
)

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NONE = ("none", "null")


@dataclass(frozen=True)
class SchedulerOption:
    """An option of a scheduler.

    type: "int", "float", "bool", "str", "list of int" or "list of float". default: that of the
    class, which holds where the package's scheduler_config.json has no such key; None for none.
    choices: the values of a "str". low, high: limits of a number.
    """

    name: str
    type: str
    default: Any
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: infinite numbers are the words "inf" and "-inf"."""
        found: dict[str, Any] = {"name": self.name, "type": self.type}
        found["default"] = _plain(self.default)
        if self.choices:
            found["choices"] = list(self.choices)
        if self.low is not None and self.high is not None:
            found["range"] = [_plain(self.low), _plain(self.high)]
        return found


@functools.cache
def options_of(name: str) -> tuple[SchedulerOption, ...]:
    """The options of a scheduler in NAMES: keys of the configuration, then arguments."""
    config, keys = config_class(name), key_names(name)
    ranges, choices = config.limits(), config.allowed()
    found = [
        SchedulerOption(
            field.name,
            _type(str(field.type)),
            field.default,
            choices.get(field.name, ()),
            *ranges.get(field.name, (None, None)),
        )
        for field in fields(config)
        if field.name in keys
    ]
    parameters = inspect.signature(build_class(name)).parameters
    found += [
        SchedulerOption(argument, _type(str(parameters[argument].annotation)), _default(parameter))
        for argument in option_names(name)
        if (parameter := parameters[argument])
    ]
    return tuple({option.name: option for option in found}.values())


@functools.cache
def option_types() -> Mapping[str, str]:
    """The type of every option of any scheduler."""
    return {option.name: option.type for name in NAMES for option in options_of(name)}


def parse_option(name: str, text: str) -> Any:
    """The value of an option in a text, such as the "3" of solver_order.

    Raises: InvalidArgumentError: no scheduler has the option, or the text is not of its type.
    """
    types = option_types()
    if name not in types:
        raise InvalidArgumentError(
            f"unknown scheduler option '{name:.60}'{nearest(name, types)}; "
            "`sdexport schedulers` lists the options of each scheduler"
        )
    kind, text = types[name], text.strip()
    if text.lower() in _NONE:
        return None
    try:
        if kind.startswith("list"):
            return [_number(part, kind) for part in re.split(r"[,\s]+", text.strip("[]() "))]
        return text if kind == "str" else _number(text, kind)
    except (ValueError, KeyError):
        words = kind.replace("bool", "true or false")
        raise InvalidArgumentError(f"{name}: expected {words}, got '{text:.60}'") from None


def _number(text: str, kind: str) -> float | bool:
    if kind == "bool":
        return _BOOLEANS[text.lower()]
    return int(text) if kind.endswith("int") else float(text)


def _type(annotation: str) -> str:
    """The type of an option, from the annotation of a field or parameter."""
    if annotation.startswith("tuple[int"):
        return "list of int"
    if annotation.startswith(("tuple", "CustomSchedule")):
        return "list of float"
    if annotation == "Bound":
        return "float"
    return annotation.removesuffix(" | None")


def _default(parameter: inspect.Parameter) -> Any:
    return None if parameter.default is parameter.empty else parameter.default


def _plain(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return list(value) if isinstance(value, tuple) else value
