"""sdexport export-adapter."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from sdexport.commands.export import graph_options, on_stage, print_exported
from sdexport.commands.memory_check import check_memory, ignore_memory_option
from sdexport.commands.progress import progress
from sdexport.commands.shared_options import FOLDER, json_option, needs_torch
from sdexport.commands.verbosity import verbosity_options


@click.command("export-adapter")
@click.argument("source")
@click.argument("package", type=FOLDER)
@graph_options
@click.option("--revision", help="Branch, tag or commit, for a model id of the hub.")
@click.option("--variant", metavar="NAME", help="Which weights of a folder to take, such as fp16.")
@click.option(
    "--allow-pickle", is_flag=True, help="Also read .pth, .pt and .bin files, weights only."
)
@click.option(
    "--image-encoder",
    type=FOLDER,
    help="Folder of an IP-Adapter's image encoder; default image_encoder/ near the file.",
)
@click.option(
    "--base",
    metavar="CHECKPOINT",
    help="Of a ControlNet-XS: the model whose UNet it is fused with (folder, model id or file).",
)
@click.option("--base-revision", help="As --revision, of --base.")
@click.option("--base-variant", metavar="NAME", help="As --variant, of --base.")
@click.option(
    "--base-ema", is_flag=True, help="Take the averaged weights of --base, a single file."
)
@click.option("--force", is_flag=True, help="Replace an existing package.")
@ignore_memory_option
@json_option
@verbosity_options
def export_adapter(
    source: str,
    package: Path,
    opset: int,
    precision: str,
    revision: str | None,
    variant: str | None,
    allow_pickle: bool,
    image_encoder: Path | None,
    base: str | None,
    base_revision: str | None,
    base_variant: str | None,
    base_ema: bool,
    force: bool,
    ignore_memory: bool,
    as_json: bool,
) -> None:
    """Export an adapter, such as a ControlNet, to a package of its own.

    PACKAGE is the folder to create. SOURCE is a folder that diffusers wrote, a model id of the
    Hugging Face hub, or a single file. Images are generated with it by giving it to 'sdexport
    generate' next to the package of a model.
    """
    with needs_torch("exporting"):
        from sdexport.adapter_exporter import export_adapter as run
    with progress(None, "export") as shown:
        manifest = run(
            source,
            package,
            opset=opset,
            precision=precision,
            revision=revision,
            variant=variant,
            allow_pickle=allow_pickle,
            image_encoder=image_encoder,
            base=base,
            base_revision=base_revision,
            base_variant=base_variant,
            base_ema=base_ema,
            force=force,
            progress=partial(on_stage, shown),
            on_memory_need=lambda need: check_memory(
                need, "this export", "export on a machine with more memory", ignore=ignore_memory
            ),
        )
    print_exported(manifest, package, precision, as_json=as_json)
