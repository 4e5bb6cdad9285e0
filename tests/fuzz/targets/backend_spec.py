"""Backends as text, NAME[,OPTION=VALUE...], by component, one in each line."""

from __future__ import annotations

from pathlib import Path

from sdexport.engines.backends import BACKENDS
from sdexport.engines.cache.profiles import Span
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.session_options import SESSION_OPTIONS
from sdexport.runtime.component_backends import (
    BackendSpec,
    backend_of,
    check_backends,
    check_session_options,
    parse_backends,
)
from sdexport.runtime.models.families import components
from tests.fuzz import mutators
from tests.fuzz.harness import Target

PRESENT = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def run(folder: Path, data: bytes) -> None:
    lines = data.decode("utf-8", "replace").split("\n")[:20]
    first, error = lines[0], None
    try:
        Span.parse(first)
    except InvalidArgumentError as raised:
        error = raised
    backends = check_backends(parse_backends(lines), PRESENT)
    check_session_options(backends, ["threads"])
    for name in PRESENT:
        spec = backend_of(backends, name)
        assert BackendSpec.parse(str(spec)) == spec
    if error is not None:
        raise error


WORDS = (
    *BACKENDS,
    *components(),
    *{f",{option}=" for options in SESSION_OPTIONS.values() for option in options},
    *("=", ",", "*", "\n", "true", "1", "bf16", ":", "1:2:8"),
)
TARGET = Target(
    "backend_spec",
    run,
    names=("backend", "option", "component", "span", "OPTION=VALUE"),
    mutate=mutators.text(WORDS),
    errors=(InvalidArgumentError,),
)
