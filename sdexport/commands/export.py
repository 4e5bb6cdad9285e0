"""sdexport export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from sdexport.commands.memory_check import check_memory, ignore_memory_option
from sdexport.commands.output import echo
from sdexport.commands.progress import progress
from sdexport.commands.shared_options import (
    FOLDER,
    json_option,
    needs_torch,
    print_json,
    source_options,
    with_options,
)
from sdexport.commands.verbosity import verbosity_options
from sdexport.graphs.precision import PRECISIONS, verifying_backends
from sdexport.runtime.models.components import SAFETY_CHECKER

_GRAPH_OPTIONS = (
    click.option(
        "--opset",
        type=click.IntRange(18, 24),
        default=23,
        show_default=True,
        help="Version of the ONNX operators; from 23 on attention is a single node.",
    ),
    click.option(
        "--precision",
        type=click.Choice(list(PRECISIONS)),
        default="fp32",
        show_default=True,
        help="; ".join(f"{name}: {meaning}" for name, meaning in PRECISIONS.items()) + ".",
    ),
)


def graph_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which graphs an export writes."""
    return with_options(command, _GRAPH_OPTIONS)


@click.command()
@click.argument("source")
@click.argument("package", type=FOLDER)
@graph_options
@source_options
@click.option(
    "--lora-inputs",
    is_flag=True,
    help="Also write graphs that take LoRAs at run time: 'sdexport generate --lora'.",
)
@click.option(
    "--controlnet-inputs",
    is_flag=True,
    help="Also write a graph that takes ControlNets at run time: 'sdexport generate --controlnet'.",
)
@click.option(
    "--t2i-adapter-inputs",
    is_flag=True,
    help="Also write a graph that takes T2I-Adapters: 'sdexport generate --t2i-adapter'.",
)
@click.option(
    "--ip-adapter-inputs",
    is_flag=True,
    help="Also write a graph that takes IP-Adapters: 'sdexport generate --ip-adapter'.",
)
@click.option("--force", is_flag=True, help="Replace an existing package.")
@ignore_memory_option
@json_option
@verbosity_options
def export(
    source: str,
    package: Path,
    opset: int,
    precision: str,
    lora_inputs: bool,
    controlnet_inputs: bool,
    t2i_adapter_inputs: bool,
    ip_adapter_inputs: bool,
    force: bool,
    ignore_memory: bool,
    as_json: bool,
    **of_source: Any,
) -> None:
    """Export a checkpoint to a package.

    PACKAGE is the folder to create. SOURCE is a diffusers folder, a model id of the Hugging Face
    hub, or a single .safetensors file as used by AUTOMATIC1111 and ComfyUI. The package is verified
    before it is put in place, if a backend that can run it is installed.
    """
    manifest = run_export(
        source,
        package,
        of_source,
        opset=opset,
        precision=precision,
        lora_inputs=lora_inputs,
        controlnet_inputs=controlnet_inputs,
        t2i_adapter_inputs=t2i_adapter_inputs,
        ip_adapter_inputs=ip_adapter_inputs,
        force=force,
        on_memory_need=lambda need: check_memory(
            need, "this export", "export on a machine with more memory", ignore=ignore_memory
        ),
    )
    print_exported(manifest, package, precision, as_json=as_json)


def print_exported(manifest: Any, package: Path, precision: str, *, as_json: bool) -> None:
    """Print what an export wrote, and how to verify it if that was not possible."""
    size = sum(record.size for part in manifest.components.values() for record in part.files)
    if as_json:
        print_json(
            {
                "package": str(package),
                "components": list(manifest.components),
                "size": size,
                "verified_with": manifest.verified_with,
            }
        )
    else:
        echo(f"{package}: {', '.join(manifest.components)}; {size / 1e6:.0f} MB")
        if SAFETY_CHECKER.name in manifest.components:
            echo("the safety checker is off by default: 'sdexport generate --safety' uses it")
    if manifest.verified_with is None:
        backend = verifying_backends(precision)[0]
        extra = "cpu" if backend == "onnxruntime" else backend
        echo(
            f"not verified: run pip install 'sdexport[{extra}]', then "
            f"sdexport verify {package} --backend {backend}",
            err=True,
        )


def run_export(
    source: str | Path, package: Path, of_source: Mapping[str, Any] | None = None, **arguments: Any
) -> Any:
    """Export with progress on stderr.

    Args:
      of_source: values of `source_options`: the fields of Options, and the revision.
      arguments: further arguments of sdexport.exporter.export.
    Returns: the Manifest.
    """
    with needs_torch("exporting"):
        from sdexport.checkpoints.sources import Options
        from sdexport.exporter import export as run
    options = dict(of_source or {})
    revision = options.pop("revision", None)
    with progress(None, "export") as shown:
        return run(
            source,
            package,
            revision=revision,
            options=Options(**options),
            progress=partial(on_stage, shown),
            **arguments,
        )


def on_stage(shown: Any, component: str, stage: str, total: int) -> None:
    """Show the stage of an export that begins."""
    shown.total = total
    shown.begin(f"{component}: {stage}")
