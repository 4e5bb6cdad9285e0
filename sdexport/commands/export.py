"""sdexport export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdexport.commands.common import FOLDER, progress_bar
from sdexport.precision import PRECISIONS, verifying_backends


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
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--tokenizer", type=FOLDER, help="CLIP's vocab.json and merges.txt, for one file.")
@click.option("--lora", multiple=True, metavar="FILE[:SCALE]", help="Merge this; repeatable.")
@click.option(
    "--embedding", multiple=True, metavar="FILE[:WORD]", help="Add this word; repeatable."
)
@click.option("--vae", type=click.Path(path_type=Path), help="Take this VAE, folder or file.")
@click.option(
    "--prediction-type",
    type=click.Choice(["epsilon", "v_prediction"]),
    help="What the UNet predicts, where the file does not tell.",
)
@click.option("--ema", is_flag=True, help="Take the averaged weights of a single file.")
@click.option("--allow-pickle", is_flag=True, help="Read .ckpt, .pt and .bin, weights alone.")
@click.option("--force", is_flag=True, help="Replace an existing package.")
def export(
    source: str,
    package: Path,
    opset: int,
    precision: str,
    revision: str | None,
    force: bool,
    **files: Any,
) -> None:
    """Export SOURCE to the folder PACKAGE.

    SOURCE is a diffusers folder, a hub id, or one .safetensors file in the original layout.
    """
    manifest = run_export(
        source, package, files, opset=opset, precision=precision, revision=revision, force=force
    )
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
    source: str | Path, package: Path, files: dict[str, Any] | None = None, **options: Any
) -> Any:
    try:
        from sdexport.export import export as run
        from sdexport.sources import Options
    except ImportError as error:
        raise ImportError(
            f"exporting needs {error.name or 'PyTorch and diffusers'}, which cannot be imported; "
            "run: pip install 'sdexport[export]'"
        ) from error
    with progress_bar(12, "export") as bar:

        def progress(component: str, stage: str) -> None:
            bar.set_description(f"{component}: {stage}")
            bar.update()

        return run(source, package, options=Options(**files or {}), progress=progress, **options)
