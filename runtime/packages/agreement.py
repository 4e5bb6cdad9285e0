"""Whether a manifest agrees with what its package's configurations and graphs say themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdexport.engines import TensorSpec
from sdexport.engines.errors import PackageError
from sdexport.engines.guarded_files import parsing
from sdexport.engines.messages import shown
from sdexport.engines.onnx_file.graph_specs import specs_of
from sdexport.runtime.models.components import UNET, VAE_DECODER, VAE_ENCODER
from sdexport.runtime.models.latent_space import downscale_of, latent_size_of
from sdexport.runtime.packages.listed_files import SCHEDULER_CONFIG, graph_file
from sdexport.runtime.packages.manifest import MANIFEST

if TYPE_CHECKING:
    from sdexport.runtime.packages.package import Package

_SHOWN = 120
"""Characters of a value in a message."""
_Values = tuple[str, str, Any, Any]
"""What is compared, the file that says it too, the manifest's value, and the file's."""


def check_agreement(package: Package) -> None:
    """Compare the manifest with every file of the package that repeats one of its values.

    A value that a file does not have is not compared.

    Raises: PackageError: two values differ, or a file holds none that make sense.
    """
    for what, file, ours, theirs in _values(package):
        if ours != theirs:
            raise PackageError(
                f"{package.folder}: {MANIFEST} and {file} disagree about {what}: "
                f"{shown(ours, _SHOWN)} and {shown(theirs, _SHOWN)}"
            )


def _values(package: Package) -> Iterator[_Values]:
    manifest = package.manifest
    if not manifest.is_adapter:
        prediction = str(package.scheduler_config.get("prediction_type", "epsilon"))
        yield "prediction_type", SCHEDULER_CONFIG, manifest.prediction_type, prediction
    for name in manifest.components:
        file = f"{name}/config.json"
        with parsing(PackageError, package.folder / file):
            if name in (VAE_DECODER.name, VAE_ENCODER.name):
                yield from _of_vae(package, name, file)
            elif name == UNET.name:
                yield from _of_denoiser(package, name, file)
    for name in manifest.components:
        yield from _of_graph(package, name)


def _of_vae(package: Package, name: str, file: str) -> Iterator[_Values]:
    manifest, config = package.manifest, package.config(name)
    for key in ("latent_channels", "scaling_factor"):
        if config.get(key) is not None:
            yield key, file, getattr(manifest, key), config[key]
    for key in ("latents_mean", "latents_std"):
        if key in config:
            numbers = None if config[key] is None else tuple(map(float, config[key]))
            yield key, file, getattr(manifest, key), numbers
    if config.get("block_out_channels") or config.get("decoder_block_out_channels"):
        yield "downscale", file, manifest.downscale, downscale_of(config)


def _of_denoiser(package: Package, name: str, file: str) -> Iterator[_Values]:
    manifest, family, config = package.manifest, package.family, package.config(name)
    if config.get("sample_size"):
        height, width = latent_size_of(config)
        size = (height * manifest.downscale, width * manifest.downscale)
        yield "default_size", file, manifest.default_size, size
    if config.get("in_channels") is not None:
        channels = family.denoiser_channels(manifest.latent_channels)
        yield f"the number of channels of {family.name}", file, channels, config["in_channels"]
    if "time_cond_proj_dim" in config:
        what = f"the guidance embedding of {family.name}"
        yield what, file, family.guidance_embedding, bool(config["time_cond_proj_dim"])


def _of_graph(package: Package, name: str) -> Iterator[_Values]:
    manifest, record, path = package.manifest, package.manifest.components[name], graph_file(name)
    graph = package.surveys.of(name)
    try:
        inputs, outputs = (specs_of(values, Path(path)) for values in (graph.inputs, graph.outputs))
    except ValueError as error:
        raise PackageError(f"{package.folder}: {name}: {error}") from error
    for what, listed, found in (
        ("inputs", record.inputs, inputs),
        ("outputs", record.outputs, outputs),
    ):
        here, there = set(map(_spec, listed)), set(map(_spec, found))
        yield what, path, sorted(here - there), sorted(there - here)
    if graph.opset is not None:
        yield "opset", path, record.opset, graph.opset
    ours = {"component": name, "family": manifest.family, "precision": record.precision}
    ours |= {"sdexport": manifest.tools.get("sdexport", "")}
    ours |= {f"source.{key}": value for key, value in manifest.source.items()}
    for key, value in graph.metadata.items():
        if key in ours or key.startswith("source."):
            yield key, path, ours.get(key), value


def _spec(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec}"
