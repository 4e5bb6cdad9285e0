"""Stable Diffusion without PyTorch: load a package and paint.

from runtime import load_pipeline

with load_pipeline("package") as pipe:
    pipe("a red circle", seed=0).images[0].save("circle.png")
"""

from engines import EngineError
from runtime import schedulers
from runtime.denoise import DenoiseStep
from runtime.guidance import Guidance, GuidanceState
from runtime.image import Parameters, save_png
from runtime.noise import TorchGenerator
from runtime.package import Manifest, Package, PackageError
from runtime.pipeline import Pipeline, Result, load_pipeline
from runtime.tokenizer import ClipTokenizer

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
