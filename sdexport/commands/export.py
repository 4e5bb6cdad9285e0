"""sdexport export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sdexport.commands.shared_options import FOLDER, needs_torch, progress_bar, source_options
from sdexport.graphs.precision import PRECISIONS, verifying_backends


@click.command()
@click.argument("source")
@click.argument("package", type=FOLDER)
@click.option("--opset", type=click.IntRange(18, 24), default=23, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(list(PRECISIONS)),
    default="fp32",
    show_default=True,
    help="; ".join(f"{name}: {meaning}" for name, meaning in PRECISIONS.items()) + ".",
)
@source_options
@click.option("--force", is_flag=True, help="Replace an existing package.")
def export(
    source: str,
    package: Path,
    opset: int,
    precision: str,
    force: bool,
    **of_source: Any,
) -> None:
    """Export SOURCE to the folder PACKAGE.

    SOURCE is a diffusers folder, a hub id, or one .safetensors file in the original layout.
    """
    manifest = run_export(source, package, of_source, opset=opset, precision=precision, force=force)
    size = sum(r.size for c in manifest.components.values() for r in c.files)
    click.echo(f"{package}: {', '.join(manifest.components)}; {size / 1e6:.0f} MB")
    if manifest.verified_with is None:
        needed = verifying_backends(precision)[0]
        extra = "cpu" if needed == "onnxruntime" else needed
        click.echo(
            f"not verified: install sdexport[{extra}] and run "
            f"'sdexport verify {package} --backend {needed}'",
            err=True,
        )


def run_export(
    source: str | Path, package: Path, of_source: Mapping[str, Any] | None = None, **rest: Any
) -> Any:
    """Export under a progress bar; returns the Manifest.

    Args:
      of_source: what `source_options` gave: the fields of Options, and the revision.
      rest: further arguments of sdexport.exporter.export.
    """
    with needs_torch("exporting"):
        from sdexport.checkpoints.sources import Options
        from sdexport.exporter import export as run
    options = dict(of_source or {})
    revision = options.pop("revision", None)
    with progress_bar(None, "export") as bar:

        def progress(component: str, stage: str, total: int) -> None:
            bar.total = total
            bar.set_description(f"{component}: {stage}")
            bar.update()

        return run(
            source,
            package,
            revision=revision,
            options=Options(**options),
            progress=progress,
            **rest,
        )
