"""The fuzz targets: one module for each, with a `TARGET`."""

from __future__ import annotations

import importlib
import pkgutil

from tests.fuzz.harness import Target

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def target(name: str) -> Target:
    """The target of a module of this folder, which is imported now."""
    found: Target = importlib.import_module(f"{__name__}.{name}").TARGET
    return found
