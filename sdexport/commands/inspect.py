"""sdexport inspect."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sdexport.commands.output import echo
from sdexport.commands.progress import progress
from sdexport.commands.shared_options import (
    engine_dir_option,
    json_option,
    print_json,
    trust_options,
    verify_hashes_option,
)
from sdexport.commands.verbosity import verbosity_options
from sdexport.engines.errors import PackageError

_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_MOST_OF_A_KIND = 3
"""Tensors that are listed one by one, of those whose names differ in a number."""
_ERRORS = (
    ("relative_l2", "relative L2"),
    ("max_abs", "largest difference"),
    ("image_max", "of 255 at most"),
    ("image_rms", "RMS of 255"),
)


@click.command()
@click.argument("path", metavar="PACKAGE|IMAGE", type=click.Path(path_type=Path))
@engine_dir_option
@click.option("--layers", is_flag=True, help="List what the layers of TensorRT's engines do.")
@trust_options
@verify_hashes_option
@json_option
@verbosity_options
def inspect(
    path: Path,
    engine_dir: Path | None,
    layers: bool,
    trusted_key: str | None,
    trust: str,
    verify_hashes: bool,
    as_json: bool,
) -> None:
    """Show what a package contains, or the settings of an image.

    Of a package the hash of every file is compared, and of its engines too: they are listed with
    whether they still fit, or were altered. Of an image the settings that it carries are printed;
    'sdexport generate --like IMAGE' uses them.
    """
    if path.suffix.lower() in _IMAGES and not path.exists():
        raise FileNotFoundError(f"no image at {path}")
    if path.is_file():
        from sdexport.commands.inspect_image import inspect_image

        if layers:
            raise click.UsageError("--layers is for a package, not for an image")
        inspect_image(path, as_json=as_json)
    else:
        required = {"trusted_key": trusted_key, "trust": trust, "verify_hashes": verify_hashes}
        _inspect_package(path, engine_dir, layers=layers, as_json=as_json, **required)


def _inspect_package(
    package: Path, engine_dir: Path | None, *, layers: bool, as_json: bool, **required: Any
) -> None:
    from sdexport.builds.built_engines import built_engines
    from sdexport.builds.layer_report import layer_report
    from sdexport.commands.inspect_layers import layer_lines
    from sdexport.engines.cache.remembered_hashes import nothing_remembered
    from sdexport.runtime.packages.package import Package
    from sdexport.runtime.packages.signature import signer

    folders = [folder for folder in (package, engine_dir) if folder is not None]
    found = (file.lstat() for folder in folders for file in folder.rglob("*"))
    total = sum(status.st_size for status in found if stat.S_ISREG(status.st_mode))
    with progress(total, "hashes", "B") as shown:
        loaded = Package.load(package, on_bytes=shown.advance, **required)
        with nothing_remembered(loaded.reads_every_hash):
            engines = built_engines(loaded, engine_dir, on_bytes=shown.advance)
    if layers:
        engines = [{**engine, "layers": layer_report(engine)} for engine in engines]
    if as_json:
        report = json.loads(loaded.manifest.to_json())
        report |= {"kind": loaded.kind, "digest": loaded.digest}
        report |= {"hashes_checked": loaded.hashes_checked, "hashes": _hashes(loaded)}
        signature = {"checked": loaded.signature is not None, "key_id": signer(loaded)}
        print_json(report | {"size": loaded.size, "engines": engines, "signature": signature})
        return
    echo(*_package_lines(loaded))
    for name in loaded.manifest.components:
        echo("", *_component_lines(loaded.manifest, name))
    for engine in engines:
        echo("", *_engine_lines(engine))
        if layers:
            echo(*layer_lines(engine["layers"]))
    if layers and not engines:
        echo("", "layers: no engine was built for this package")


def _hashes(package: Any) -> dict[str, Any] | None:
    """How the hashes were checked; null for a folder that has none."""
    return asdict(package.hashes.report()) if package.hashes else None


def _signed(package: Any) -> str:
    from sdexport.runtime.packages.signature import signer

    if package.signature is not None:
        return f"with key {package.signature}"
    key_id = signer(package)
    return f"with key {key_id}, not checked: --key checks it" if key_id else "no"


def _package_lines(package: Any) -> list[str]:
    from sdexport.runtime.models.components import (
        EXPORT_OPTIONS,
        AdapterKind,
        adapter_graph,
        lora_graph,
    )

    manifest = package.manifest
    height, width = manifest.default_size
    loras = [name for name in manifest.components if lora_graph(name) in package.graphs]
    values = {
        "family": manifest.family,
        "source": _pairs(manifest.source),
        "size": f"{package.size / 1e6:.1f} MB",
        "files": f"every hash matches: {package.hashes.report()}; digest {package.digest}"
        if package.hashes
        else "not verified: there are no hashes and no reference outputs, as in Optimum's folders",
        "images": f"{width}x{height} by default, multiples of {manifest.downscale}",
        "latents": f"{manifest.latent_channels} channels, scaling {manifest.scaling_factor:.5g}"
        + (", normalised" if manifest.latents_mean else ""),
        "prediction": manifest.prediction_type,
        "scheduler": str(package.scheduler_config.get("_class_name", "unknown")),
        "verified": f"with {manifest.verified_with}" if manifest.verified_with else "not yet",
        "signed": _signed(package),
        "made with": _pairs(manifest.tools) or "unknown",
    }
    if loras:
        values["LoRAs"] = f"taken at run time by {', '.join(loras)}"
    if manifest.is_adapter:
        for name in ("images", "prediction", "scheduler"):
            del values[name]
        values["latents"] = f"{manifest.latent_channels} channels, of 1/{manifest.downscale} size"
        if types := _control_types(manifest):
            values["modes"] = types
    for kind, (name, _) in () if manifest.is_adapter else EXPORT_OPTIONS.items():
        graph = adapter_graph(package.family.denoiser, {kind})
        if kind is not AdapterKind.LORA and graph in package.graphs:
            values[name] = f"taken at run time by {package.family.denoiser}"
    width = max(11, *(len(name) + 1 for name in values))
    return [f"{name:<{width}}{value}" for name, value in values.items()]


def _control_types(manifest: Any) -> str:
    """The modes of a ControlNet-Union; empty for other adapters."""
    from sdexport.engines.guarded_files import parsing
    from sdexport.runtime.models.control_types import listed_types, types_of
    from sdexport.runtime.models.controlnet import CONTROLNET

    component = manifest.components.get(CONTROLNET.name)
    with parsing(PackageError, "the manifest"):
        types = 0 if component is None else types_of(component.inputs)
    return listed_types(types) if types else ""


def _component_lines(manifest: Any, name: str) -> list[str]:
    component = manifest.components[name]
    size = sum(record.size for record in component.files) / 1e6
    lines = [f"{name}: {component.precision}, opset {component.opset}, {size:.1f} MB"]
    lines += [f"  {count} nodes {precision}" for precision, count in component.nodes.items()]
    lines += _tensor_lines("<-", component.inputs)
    lines += _tensor_lines("->", component.outputs)
    for key, figures in (manifest.verification or {}).items():
        component_name, _, output = key.partition(".")
        if component_name == name:
            errors = [f"{name} {figures[kind]:.2g}" for kind, name in _ERRORS if kind in figures]
            if errors:  # older packages hold other figures
                lines.append(f"  {output} compared with PyTorch: {', '.join(errors)}")
    return lines


def _tensor_lines(arrow: str, specs: Sequence[Any]) -> list[str]:
    """A line for each tensor, and one for all of a kind: many names that differ in a number."""
    kinds: dict[str, list[Any]] = {}
    for spec in specs:
        kinds.setdefault(re.sub(r"\d+", "N", spec.name), []).append(spec)
    lines = []
    for kind in kinds.values():
        first, last = kind[0], kind[-1]
        if len(kind) <= _MOST_OF_A_KIND:
            lines += [f"  {arrow} {spec.name}: {spec}" for spec in kind]
        else:
            shown = f"{first}" if str(first) == str(last) else f"{first} to {last}"
            lines.append(f"  {arrow} {first.name} to {last.name}, {len(kind)} of them: {shown}")
    return lines


def _engine_lines(engine: Mapping[str, Any]) -> list[str]:
    from sdexport.engines.cache.profiles import show

    version = engine.get("library_version", "of an unknown version")
    size = engine["size"] / 1e6
    lines = [f"engine {engine['component']}: {engine['backend']} {version}, {size:.1f} MB"]
    for profile in engine.get("profiles", ()):
        lines.append(f"  profile: {show(profile) or 'fixed sizes'}")
    target = {name.replace("_", " "): value for name, value in engine.get("target", {}).items()}
    lines.append(f"  for: {_pairs(target) or 'unknown'}")
    options = [
        name.replace("_", " ") + ("" if value is True else f" {_option_text(value)}")
        for name, value in engine.get("options", {}).items()
        if value not in (None, False, {}) and not isinstance(value, list)  # a list is the target
    ]
    if options:
        lines.append(f"  options: {', '.join(options)}")
    if not engine["fits"]:
        return [*lines, f"  {engine['state']}: {'; '.join(engine['differences'])}"]
    not_compared = ", ".join(engine["not_compared"])
    lines.append("  fresh" + (f" (not compared: {not_compared})" if not_compared else ""))
    if engine["refits"]:
        lines.append("  takes this package's weights when it is opened")
    if engine["other_package"]:
        lines.append(f"  {engine['other_package']}")
    return lines


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _option_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " and ".join(f"{name} {entry}" for name, entry in value.items())
    return str(value)
