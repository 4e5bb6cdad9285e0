"""What pybind11 bindings offer, read from the docstrings that pybind11 writes itself.

A method's docstring begins with its signature, or lists those of its overloads:
`set_tensor_address(self: pkg.IExecutionContext, name: str, memory: typing.SupportsInt) -> bool`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

METHOD, PROPERTY, VALUE = "method", "property", "value"


@dataclass(frozen=True)
class Parameter:
    """One parameter. type: without the name of its module, such as "SupportsInt"."""

    name: str
    type: str
    optional: bool


@dataclass(frozen=True)
class Signature:
    """One overload, without `self`."""

    parameters: tuple[Parameter, ...]
    returns: str

    def takes(self, count: int) -> bool:
        """Whether it can be called with that many positional arguments."""
        needed = sum(not parameter.optional for parameter in self.parameters)
        return needed <= count <= len(self.parameters)


@dataclass(frozen=True)
class Member:
    """A member of a class or module. writable: of a property."""

    kind: str
    signatures: tuple[Signature, ...] = ()
    writable: bool = False


Surface = dict[str, dict[str, Member]]
"""Class -> its members; the module's own are under ""."""


def surface(module: ModuleType) -> Surface:
    """The classes of a module of bindings, each with its members."""
    found: Surface = {"": {}}
    for name, value in vars(module).items():
        if inspect.isclass(value):
            members = {n: _member(n, value) for n in dir(value) if _is_public(n)}
            found[name] = members
            found[""][name] = Member(METHOD, members["__init__"].signatures)
            for inner, nested in vars(value).items():
                if inspect.isclass(nested):
                    found[inner] = {n: _member(n, nested) for n in dir(nested) if _is_public(n)}
        elif _is_public(name):
            signatures = _python_signature(value) if inspect.isfunction(value) else ()
            found[""][name] = Member(METHOD if callable(value) else VALUE, signatures)
    return found


def _is_public(name: str) -> bool:
    return name == "__init__" or not name.startswith("_")


def _member(name: str, owner: type) -> Member:
    value = inspect.getattr_static(owner, name)
    if isinstance(value, property):
        return Member(PROPERTY, writable=value.fset is not None)
    attribute = getattr(owner, name)
    if not callable(attribute) or isinstance(attribute, owner):
        return Member(VALUE)
    if inspect.isclass(attribute):
        return Member(VALUE)
    return Member(METHOD, parse(name, attribute.__doc__ or ""))


def parse(name: str, text: str) -> tuple[Signature, ...]:
    """The signatures at the start of the lines of a docstring."""
    pattern = re.compile(rf"^(?:\d+\. )?{re.escape(name)}\((?!\*args)(.*)\) -> (.+)$", re.MULTILINE)
    return tuple(
        Signature(tuple(map(_parameter, _split(match[1])[1:])), _short(match[2]))
        for match in pattern.finditer(text)
    )


def _python_signature(function: Any) -> tuple[Signature, ...]:
    parameters = inspect.signature(function).parameters.values()
    return (
        Signature(
            tuple(Parameter(p.name, "object", p.default is not p.empty) for p in parameters),
            "object",
        ),
    )


def _split(text: str) -> list[str]:
    """A parameter list at its outer commas."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char in "([<{") - (char in ")]}" or (char == ">" and text[index - 1] != "-"))
        if char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _parameter(text: str) -> Parameter:
    name, _, rest = text.partition(":")
    kind, equals, _ = rest.partition(" = ")
    return Parameter(name.strip(), _short(kind), bool(equals))


def _short(kind: str) -> str:
    """A type without its module: that of C++ where it was bound after the method."""
    return re.sub(r"[\w.:]*(?:\.|::)(\w+)", r"\1", kind.strip())


def mismatch(signatures: Sequence[Signature], arguments: Sequence[object]) -> str:
    """Why arguments fit none of the signatures; "" if they fit one."""
    problems = []
    for signature in signatures:
        if not signature.takes(len(arguments)):
            problems.append(f"it takes {len(signature.parameters)} arguments, not {len(arguments)}")
            continue
        wrong = [
            f"{parameter.name} is {type(argument).__name__}, not {parameter.type}"
            for parameter, argument in zip(signature.parameters, arguments, strict=False)
            if not _fits(parameter.type, argument)
        ]
        if not wrong:
            return ""
        problems += wrong
    return "; ".join(problems)


def _fits(kind: str, value: object) -> bool:
    """Whether pybind11 converts a value to a type."""
    if kind == "object":
        return True
    if kind == "SupportsInt":  # its integers take whatever has __index__ or __int__, but no float
        return hasattr(value, "__int__") and not isinstance(value, (float, str))
    if kind == "Buffer":
        try:
            memoryview(value).release()  # type: ignore[arg-type]
        except TypeError:
            return False
        return True
    plain: dict[str, type] = {"str": str, "bool": bool, "tuple": tuple, "list": list}
    if kind in plain:
        return isinstance(value, plain[kind])
    return kind in {base.__name__ for base in type(value).__mro__}
