"""Which backend runs which component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdexport.engines.backends import check_backend
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.models.families import components

Backends = str | Mapping[str, str]
"""One backend for all components, or one by component; "*" stands for all others."""
DEFAULT = "onnxruntime"
OTHERS = "*"


def backend_of(backends: Backends, component: str) -> str:
    """The backend of a component or of one of its token graphs."""
    if isinstance(backends, str):
        return backends
    component = component.partition(".")[0]
    return backends.get(component, backends.get(OTHERS, DEFAULT))


def check_backends(backends: Backends, present: Sequence[str]) -> Backends:
    """`backends` themselves.

    Args:
      present: the components of the package.
    Raises: InvalidArgumentError: an unknown backend, or a component that the package does not have.
    """
    if isinstance(backends, str):
        return check_backend(backends)
    for component, backend in backends.items():
        check_backend(backend)
        if component not in (*present, OTHERS):
            raise InvalidArgumentError(
                f"no component '{component:.40}' to run on {backend}; "
                f"the package has {', '.join(present)}"
            )
    return backends


def parse_backends(values: Sequence[str]) -> Backends:
    """Parse "NAME" and "COMPONENT=NAME", each any number of times; the last one counts.

    Raises: InvalidArgumentError: no such backend or component.
    """
    found: dict[str, str] = {}
    for value in values:
        component, equals, backend = value.partition("=")
        if not equals:
            component, backend = OTHERS, value
        elif component not in components():
            raise InvalidArgumentError(
                f"no component '{component:.40}'; choose one of {', '.join(components())}"
            )
        found[component] = check_backend(backend)
    if set(found) <= {OTHERS}:
        return found.get(OTHERS, DEFAULT)
    return found


def parse_option(text: str) -> tuple[str, Any]:
    """Parse "NAME=VALUE", an option of a backend's session.

    Returns: the name, and the value as bool ("true", "false"), int or str.
    Raises: InvalidArgumentError: name or value is missing.
    """
    name, _, value = text.partition("=")
    if not (name and value):
        raise InvalidArgumentError(
            f"expected OPTION=VALUE such as precision=bf16, got '{text:.40}'"
        )
    if value.lower() in _BOOLEANS:
        return name, _BOOLEANS[value.lower()]
    return name, int(value) if value.isascii() and value.isdecimal() else value


_BOOLEANS = {"true": True, "false": False}
