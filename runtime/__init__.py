"""Stable Diffusion without PyTorch: load a package and paint.

from sdexport.runtime import load_pipeline

with load_pipeline("package") as pipe:
    pipe("a red circle", seed=0).images[0].save("circle.png")

Each name is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdexport.engines import EngineError
    from sdexport.engines.errors import PackageError
    from sdexport.runtime import schedulers
    from sdexport.runtime.denoise import DenoiseStep
    from sdexport.runtime.guidance import Guidance, GuidanceState
    from sdexport.runtime.images.image_files import Parameters, save_png
    from sdexport.runtime.noise.torch_generator import TorchGenerator
    from sdexport.runtime.packages.manifest import Manifest
    from sdexport.runtime.packages.package import Package
    from sdexport.runtime.pipeline import Pipeline, load_pipeline
    from sdexport.runtime.result import Result
    from sdexport.runtime.text.tokenizer import ClipTokenizer

_HOMES = {
    "sdexport.engines.errors": ("EngineError", "PackageError"),
    "sdexport.runtime.denoise": ("DenoiseStep",),
    "sdexport.runtime.guidance": ("Guidance", "GuidanceState"),
    "sdexport.runtime.images.image_files": ("Parameters", "save_png"),
    "sdexport.runtime.packages.manifest": ("Manifest",),
    "sdexport.runtime.noise.torch_generator": ("TorchGenerator",),
    "sdexport.runtime.packages.package": ("Package",),
    "sdexport.runtime.pipeline": ("Pipeline", "load_pipeline"),
    "sdexport.runtime.result": ("Result",),
    "sdexport.runtime.text.tokenizer": ("ClipTokenizer",),
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
        return import_module("sdexport.runtime.schedulers")
    if name not in _HOME:
        raise AttributeError(f"module 'sdexport.runtime' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
