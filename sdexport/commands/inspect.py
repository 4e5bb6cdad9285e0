"""sdexport inspect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sdexport.commands.shared_options import (
    FOLDER,
    engine_dir_option,
    json_option,
    print_json,
    progress_bar,
)


@click.command()
@click.argument("package", type=FOLDER)
@engine_dir_option
@json_option
def inspect(package: Path, engine_dir: Path | None, as_json: bool) -> None:
    """Check every file's hash and show what is in PACKAGE, and which engines were built for it."""
    from sdexport.builds.built_engines import built_engines
    from sdexport.runtime.packages.package import Package

    total = sum(f.stat().st_size for f in package.rglob("*") if f.is_file())
    with progress_bar(total, "hashes", "B") as bar:
        loaded = Package.load(package, on_bytes=bar.update)
    manifest, engines = loaded.manifest, built_engines(loaded, engine_dir)
    if as_json:
        report = json.loads(manifest.to_json()) | {"size": loaded.size, "engines": engines}
        print_json(report)
        return
    height, width = manifest.default_size
    lines = {
        "family": manifest.family,
        "source": ", ".join(f"{k} {v}" for k, v in manifest.source.items()),
        "size": f"{loaded.size / 1e6:.1f} MB",
        "pictures": f"{width}x{height} by default, multiples of {manifest.downscale}",
        "latents": f"{manifest.latent_channels} channels, scaling {manifest.scaling_factor:.5g}",
        "prediction": manifest.prediction_type,
        "scheduler": str(loaded.scheduler_config.get("_class_name", "unknown")),
        "verified": f"with {manifest.verified_with}" if manifest.verified_with else "not yet",
        "made with": ", ".join(f"{k} {v}" for k, v in manifest.tools.items()) or "unknown",
    }
    for name, value in lines.items():
        click.echo(f"{name:<11}{value}")
    for name, component in manifest.components.items():
        size = sum(record.size for record in component.files) / 1e6
        click.echo(f"\n{name}: {component.precision}, opset {component.opset}, {size:.1f} MB")
        for kind, count in component.nodes.items():
            click.echo(f"  {count} nodes {kind}")
        for arrow, specs in (("<-", component.inputs), ("->", component.outputs)):
            for spec in specs:
                click.echo(f"  {arrow} {spec.name}: {spec}")
        for key, figures in (manifest.verification or {}).items():
            if key.startswith(f"{name}."):
                output = key.removeprefix(f"{name}.")
                click.echo(
                    f"  {output} against PyTorch: {figures['metric']} {figures['error']:.1e}"
                )
    for engine in engines:
        _show_engine(engine)


def _show_engine(engine: Mapping[str, Any]) -> None:
    version = engine.get("library_version", "of an unknown version")
    size = engine["size"] / 1e6
    click.echo(f"\nengine {engine['component']}: {engine['backend']} {version}, {size:.1f} MB")
    for profile in engine.get("profiles", ()):
        sizes = ", ".join(f"{name} {span}" for name, span in profile.items())
        click.echo(f"  profile: {sizes or 'fixed'}")
    target = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in engine.get("target", {}).items())
    click.echo(f"  for: {target or 'unknown'}")
    chosen = [
        name.replace("_", " ") + ("" if value is True else f" {_text(value)}")
        for name, value in engine.get("options", {}).items()
        if value not in (None, False, {}) and not isinstance(value, list)  # the list is the target
    ]
    if chosen:
        click.echo(f"  options: {', '.join(chosen)}")
    if engine["fits"]:
        beside = f" (not compared: {', '.join(engine['not_compared'])})"
        click.echo(f"  fresh{beside if engine['not_compared'] else ''}")
        if engine["refits"]:
            click.echo("  takes this package's weights when it is opened")
    else:
        click.echo(f"  stale: {'; '.join(engine['differences'])}")


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " and ".join(f"{name} {entry}" for name, entry in value.items())
    return str(value)
