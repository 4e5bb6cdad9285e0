"""Which backend runs which component, with which options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdexport.engines.backends import AUTO, check_backend
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.engines.session_options import SESSION_OPTIONS, check_options
from sdexport.runtime.models.families import adapter_components, components

Backends = str | Mapping[str, str]
"""One backend for all components, or one by component; "*" stands for all others.

A backend is NAME[,OPTION=VALUE...], such as "openvino,precision=bf16".
"""
DEFAULT = "onnxruntime"
OTHERS = "*"
PIPELINE_OPTIONS = (
    "engine_dir",
    "max_batch",
    "vae_tile",
    "low_memory",
    "lora_dir",
    "expected_images",
)
"""Options of load_pipeline that are not of a backend's sessions."""


@dataclass(frozen=True)
class BackendSpec:
    """A backend and options of its sessions; as text NAME[,OPTION=VALUE...]."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> BackendSpec:
        """Read NAME[,OPTION=VALUE...].

        Raises: InvalidArgumentError: no such backend, or an option without a value.
        """
        name, *rest = text.split(",")
        check_backend(name)
        try:
            return cls(name, dict(map(parse_option, rest)))
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"backend {text:.60}: {error}") from None

    def __str__(self) -> str:
        return ",".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])


def backend_of(backends: Backends, component: str) -> BackendSpec:
    """The backend of a component or of one of its token graphs."""
    if not isinstance(backends, str):
        component = component.partition(".")[0]
        backends = backends.get(component, backends.get(OTHERS, DEFAULT))
    return BackendSpec.parse(backends)


def check_backends(backends: Backends, present: Sequence[str]) -> Backends:
    """`backends` themselves.

    Args:
      present: the components of the package; those of adapters may be named as well.
    Raises: InvalidArgumentError: an unknown backend, or a component that the package does not have.
    """
    if isinstance(backends, str):
        BackendSpec.parse(backends)
        return backends
    if not isinstance(backends, Mapping) or not all(map(_is_text, backends.values())):
        raise InvalidArgumentError(
            f"backend must be a name, or names by component, got {shown(backends)}"
        )
    for component, backend in backends.items():
        BackendSpec.parse(backend)
        if component not in (*present, *adapter_components(), OTHERS):
            raise InvalidArgumentError(
                f"no component '{component:.40}' to run on {backend}; "
                f"the package has {', '.join(present)}"
            )
    return backends


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def check_session_options(backends: Backends, options: Iterable[str]) -> None:
    """Check the options of the backends that run a package's components.

    Args:
      options: names, of options for all components; with several backends each gets its own.
    Raises: InvalidArgumentError: an option that none of the backends has.
    """
    values = {OTHERS: backends} if isinstance(backends, str) else {OTHERS: DEFAULT, **backends}
    specs = [BackendSpec.parse(value) for value in values.values()]
    for spec in specs:
        check_options(_named([spec.name]), spec.options)
    check_options(_named([spec.name for spec in specs]), options, others=PIPELINE_OPTIONS)


def _named(names: Sequence[str]) -> list[str]:
    """Backends by name; "auto" may take any."""
    return list(SESSION_OPTIONS) if AUTO in names else list(dict.fromkeys(names))


def parse_backends(values: Sequence[str]) -> Backends:
    """Parse "BACKEND" and "COMPONENT=BACKEND", each any number of times; the last one counts.

    Raises: InvalidArgumentError: no such backend or component, or an option without a value.
    """
    found: dict[str, str] = {}
    for value in values:
        component, equals, backend = value.partition("=")
        if not equals or "," in component:  # NAME, or NAME,OPTION=VALUE
            component, backend = OTHERS, value
        elif component not in components():
            raise InvalidArgumentError(
                f"no component '{component:.40}'; choose one of {', '.join(components())}"
            )
        BackendSpec.parse(backend)
        found[component] = backend
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
