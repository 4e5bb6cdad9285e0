"""sdexport inspect."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sdexport.commands.common import FOLDER, json_option, print_json, progress_bar


@click.command()
@click.argument("package", type=FOLDER)
@json_option
def inspect(package: Path, as_json: bool) -> None:
    """Check every file's hash and show what is in PACKAGE."""
    from runtime import Package

    total = sum(f.stat().st_size for f in package.rglob("*") if f.is_file())
    with progress_bar(total, "hashes", "B") as bar:
        loaded = Package.load(package, on_bytes=bar.update)
    manifest = loaded.manifest
    if as_json:
        print_json(json.loads(manifest.to_json()) | {"size": loaded.size})
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
        "made with": ", ".join(f"{k} {v}" for k, v in manifest.tools.items()) or "unknown",
    }
    for name, value in lines.items():
        click.echo(f"{name:<11}{value}")
    for name, component in manifest.components.items():
        size = sum(record.size for record in component.files) / 1e6
        click.echo(f"\n{name}: {component.precision}, opset {component.opset}, {size:.1f} MB")
        for arrow, specs in (("<-", component.inputs), ("->", component.outputs)):
            for spec in specs:
                click.echo(f"  {arrow} {spec.name}: {spec}")
        for key, figures in (manifest.verification or {}).items():
            if key.startswith(f"{name}."):
                output = key.removeprefix(f"{name}.")
                click.echo(
                    f"  {output} against PyTorch: {figures['metric']} {figures['error']:.1e}"
                )
