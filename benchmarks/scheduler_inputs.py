"""Inputs of the scheduler benchmarks, the same for both libraries: shape, configuration, noise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

SHAPE = (1, 4, 64, 64)
CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}


@contextmanager
def fixed_noise(twin: type, noise: Any) -> Iterator[None]:
    """Make a scheduler of diffusers use this noise wherever it draws some."""
    module = sys.modules[twin.__module__]
    draws: dict[str, Callable[..., Any]] = {
        "randn_tensor": lambda *_, **__: noise,
        "BrownianTreeNoiseSampler": lambda *_: lambda a, b: noise,
    }
    with ExitStack() as stack:
        for name, draw in draws.items():
            if hasattr(module, name):
                stack.enter_context(mock.patch.object(module, name, draw))
        yield
