"""Which backend runs which component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdexport.engines.backends import check_backend
from sdexport.runtime.models.families import components

Backends = str | Mapping[str, str]
"""One backend for all components, or some components' own; "*" stands for the others."""
DEFAULT = "onnxruntime"
OTHERS = "*"


def backend_of(backends: Backends, component: str) -> str:
    """The backend of a component, or of a graph beside its own."""
    if isinstance(backends, str):
        return backends
    component = component.partition(".")[0]
    return backends.get(component, backends.get(OTHERS, DEFAULT))


def check_backends(backends: Backends, present: Sequence[str]) -> Backends:
    """`backends`, if they name backends that exist and components of the package.

    Raises: ValueError: they do not.
    """
    if isinstance(backends, str):
        return check_backend(backends)
    for component, backend in backends.items():
        check_backend(backend)
        if component not in (*present, OTHERS):
            raise ValueError(
                f"no component '{component:.40}' to run on {backend}; "
                f"the package has {', '.join(present)}"
            )
    return backends


def parse_backends(values: Sequence[str]) -> Backends:
    """Read "NAME" and "COMPONENT=NAME", each as often as wanted; the last one counts.

    Raises: ValueError: no such backend or component.
    """
    found: dict[str, str] = {}
    for value in values:
        component, equals, backend = value.partition("=")
        if not equals:
            component, backend = OTHERS, value
        elif component not in components():
            raise ValueError(
                f"no component '{component:.40}'; choose one of {', '.join(components())}"
            )
        found[component] = check_backend(backend)
    if set(found) <= {OTHERS}:
        return found.get(OTHERS, DEFAULT)
    return found


def parse_option(text: str) -> tuple[str, Any]:
    """Read "NAME=VALUE", an option of the backends' sessions: a whole number, true, false or text.

    Raises: ValueError: it has no name or no value.
    """
    name, _, value = text.partition("=")
    if not (name and value):
        raise ValueError(f"expected OPTION=VALUE such as precision=bf16, got '{text:.40}'")
    if value.lower() in _TRUTH:
        return name, _TRUTH[value.lower()]
    return name, int(value) if value.isascii() and value.isdecimal() else value


_TRUTH = {"true": True, "false": False}
