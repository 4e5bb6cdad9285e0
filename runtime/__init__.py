"""Stable Diffusion without PyTorch: load a package and paint.

from runtime import load_pipeline

with load_pipeline("package") as pipe:
    pipe("a red circle", seed=0).images[0].save("circle.png")

Each name is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines import EngineError
    from runtime import schedulers
    from runtime.denoise import DenoiseStep
    from runtime.guidance import Guidance, GuidanceState
    from runtime.image import Parameters, save_png
    from runtime.manifest import Manifest, PackageError
    from runtime.noise import TorchGenerator
    from runtime.package import Package
    from runtime.pipeline import Pipeline, load_pipeline
    from runtime.result import Result
    from runtime.tokenizer import ClipTokenizer

_HOMES = {
    "engines": ("EngineError",),
    "runtime.denoise": ("DenoiseStep",),
    "runtime.guidance": ("Guidance", "GuidanceState"),
    "runtime.image": ("Parameters", "save_png"),
    "runtime.manifest": ("Manifest", "PackageError"),
    "runtime.noise": ("TorchGenerator",),
    "runtime.package": ("Package",),
    "runtime.pipeline": ("Pipeline", "load_pipeline"),
    "runtime.result": ("Result",),
    "runtime.tokenizer": ("ClipTokenizer",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ClipTokenizer",
    "DenoiseStep",
    "EngineError",
    "Guidance",
    "GuidanceState",
    "Manifest",
    "Package",
    "PackageError",
    "Parameters",
    "Pipeline",
    "Result",
    "TorchGenerator",
    "load_pipeline",
    "save_png",
    "schedulers",
]


def __getattr__(name: str) -> Any:
    if name == "schedulers":
        return import_module("runtime.schedulers")
    if name not in _HOME:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
