"""Export any Stable Diffusion checkpoint to ONNX and run it anywhere without PyTorch.

    import sdexport

    sdexport.export("path/to/checkpoint", "package")  # needs sdexport[export]
    with sdexport.load_pipeline("package") as pipe:   # needs sdexport[cpu]
        result = pipe("a red circle", seed=0)
    sdexport.save_image(result.images[0], "circle.png")

Names are imported when they are first used, so that `import sdexport` is cheap and needs nothing
but the standard library. Errors: see `sdexport.SDExportError` and its subclasses in
`sdexport.engines.errors`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdexport.adapter_exporter import export_adapter as export_adapter
    from sdexport.builds.engine_builder import build as build
    from sdexport.engines.backends import open_session as open_session
    from sdexport.engines.errors import CheckpointError as CheckpointError
    from sdexport.engines.errors import EngineError as EngineError
    from sdexport.engines.errors import InvalidArgumentError as InvalidArgumentError
    from sdexport.engines.errors import MissingDependencyError as MissingDependencyError
    from sdexport.engines.errors import OutOfMemoryError as OutOfMemoryError
    from sdexport.engines.errors import PackageError as PackageError
    from sdexport.engines.errors import SDExportError as SDExportError
    from sdexport.engines.errors import VerificationError as VerificationError
    from sdexport.engines.errors import WorkerError as WorkerError
    from sdexport.exporter import export as export
    from sdexport.runtime import schedulers as schedulers
    from sdexport.runtime.adapters.controlnet_argument import ControlNet as ControlNet
    from sdexport.runtime.adapters.image_adapter_arguments import IPAdapter as IPAdapter
    from sdexport.runtime.adapters.image_adapter_arguments import T2IAdapter as T2IAdapter
    from sdexport.runtime.images import preprocessors as preprocessors
    from sdexport.runtime.images.metadata import save_image as save_image
    from sdexport.runtime.images.parameters import Parameters as Parameters
    from sdexport.runtime.images.read_parameters import read_parameters as read_parameters
    from sdexport.runtime.noise.torch_generator import TorchGenerator as TorchGenerator
    from sdexport.runtime.packages.package import Package as Package
    from sdexport.runtime.pipeline import Pipeline as Pipeline
    from sdexport.runtime.pipeline_loading import load_pipeline as load_pipeline
    from sdexport.runtime.result import Result as Result
    from sdexport.runtime.text.tokenizer import ClipTokenizer as ClipTokenizer
    from sdexport.runtime.version import __version__ as __version__
    from sdexport.verification.verifier import verify as verify

_NAMES = {
    "sdexport.adapter_exporter": ("export_adapter",),
    "sdexport.builds.engine_builder": ("build",),
    "sdexport.engines.backends": ("open_session",),
    "sdexport.engines.errors": (
        "CheckpointError",
        "EngineError",
        "InvalidArgumentError",
        "MissingDependencyError",
        "OutOfMemoryError",
        "PackageError",
        "SDExportError",
        "VerificationError",
        "WorkerError",
    ),
    "sdexport.exporter": ("export",),
    "sdexport.runtime.adapters.controlnet_argument": ("ControlNet",),
    "sdexport.runtime.adapters.image_adapter_arguments": ("IPAdapter", "T2IAdapter"),
    "sdexport.runtime.images.metadata": ("save_image",),
    "sdexport.runtime.images.parameters": ("Parameters",),
    "sdexport.runtime.images.read_parameters": ("read_parameters",),
    "sdexport.runtime.noise.torch_generator": ("TorchGenerator",),
    "sdexport.runtime.packages.package": ("Package",),
    "sdexport.runtime.pipeline": ("Pipeline",),
    "sdexport.runtime.pipeline_loading": ("load_pipeline",),
    "sdexport.runtime.result": ("Result",),
    "sdexport.runtime.text.tokenizer": ("ClipTokenizer",),
    "sdexport.verification.verifier": ("verify",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

_MODULES = {
    "preprocessors": "sdexport.runtime.images.preprocessors",
    "schedulers": "sdexport.runtime.schedulers",
}

__all__ = [*sorted(_MODULE_OF), "__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = import_module("sdexport.runtime.version").__version__
    elif name in _MODULES:
        value = import_module(_MODULES[name])
    elif name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    else:
        raise AttributeError(f"module 'sdexport' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
