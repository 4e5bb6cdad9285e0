"""sdexport triton."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sdexport.commands.output import echo
from sdexport.commands.progress import progress
from sdexport.commands.shared_options import (
    FOLDER,
    json_option,
    print_json,
    trust_options,
    verify_hashes_option,
)
from sdexport.commands.verbosity import verbosity_options
from sdexport.server.server_settings import ServerSettings

if TYPE_CHECKING:
    from sdexport.triton.repository_record import RepositoryRecord

_COUNT = click.IntRange(1, 1024)


@click.command()
@click.argument("package", type=FOLDER)
@click.argument("repository", type=FOLDER)
@click.option("--force", is_flag=True, help="Replace a repository that sdexport wrote.")
@click.option(
    "--name",
    help="Name of the pipeline's model, and beginning of the others'. Default: the package's "
    "folder.",
)
@click.option(
    "--kind",
    type=click.Choice(["cpu", "gpu"]),
    default="gpu",
    show_default=True,
    help="Where Triton runs the graphs.",
)
@click.option(
    "--instances",
    type=_COUNT,
    default=1,
    show_default=True,
    help="How often each graph is loaded, on each GPU.",
)
@click.option(
    "--pipelines",
    type=_COUNT,
    default=1,
    show_default=True,
    help="Processes that run the pipeline; each works on one batch at a time.",
)
@click.option(
    "--max-batch",
    type=_COUNT,
    default=4,
    show_default=True,
    help="Images that are generated together at most.",
)
@click.option(
    "--max-queue-delay-us",
    "queue_delay",
    type=click.IntRange(0, 60_000_000),
    default=20_000,
    show_default=True,
    help="Microseconds for which a request waits for others to run with it, if --max-batch is more "
    "than 1.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 2**28),
    default=ServerSettings.max_pixels,
    show_default=True,
    help="Pixels of an image at most.",
)
@click.option(
    "--max-steps",
    type=click.IntRange(1, 1000),
    default=ServerSettings.max_steps,
    show_default=True,
    help="Steps of an image at most.",
)
@click.option(
    "--adapter-graphs",
    is_flag=True,
    help="Also write the graphs that take LoRAs, ControlNets and other adapters, for programs of "
    "your own; the pipeline does not use them.",
)
@click.option(
    "--copy",
    is_flag=True,
    help="Copy all files. By default they are hard links to those of the package, if possible.",
)
@trust_options
@verify_hashes_option
@json_option
@verbosity_options
def triton(
    package: Path,
    repository: Path,
    force: bool,
    trusted_key: str | None,
    trust: str,
    verify_hashes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write a package as a model repository for NVIDIA Triton.

    REPOSITORY is the folder to create. Each graph becomes a model that ONNX Runtime runs, and the
    pipeline a Python model that calls them. Triton's Python needs sdexport.
    """
    from sdexport.triton.repository_writer import RepositoryOptions, write_repository

    with progress(None, "write") as shown:
        record = write_repository(
            package,
            repository,
            options=RepositoryOptions(**options),
            force=force,
            on_file=shown.begin,
            trusted_key=trusted_key,
            trust=trust,
            verify_hashes=verify_hashes,
        )
    _name_unused_delay(options["max_batch"])
    _print(record, package, repository, options["adapter_graphs"], as_json=as_json)


def _name_unused_delay(max_batch: int) -> None:
    """Name a delay that was given for a batch of one image, which waits for no other."""
    source = click.get_current_context().get_parameter_source("queue_delay")
    if max_batch == 1 and source is not ParameterSource.DEFAULT:
        echo("not used: --max-queue-delay-us; with --max-batch 1 no request waits", err=True)


def _print(
    record: RepositoryRecord, package: Path, repository: Path, adapters: bool, *, as_json: bool
) -> None:
    linked = _linked_bytes(record, repository)
    if as_json:
        models = {
            model.name: {"graph": model.graph, "max_batch_size": model.max_batch_size}
            for model in record.models
        }
        print_json(
            {
                "repository": str(repository),
                "pipeline": record.name,
                "models": models,
                "size": record.size,
                "linked": linked,
            }
        )
        return
    echo(
        f"{repository}: {record.name} (pipeline), "
        f"{', '.join(model.name for model in record.models)}; {record.size / 1e6:.0f} MB, "
        f"{linked / 1e6:.0f} MB of them as hard links"
    )
    if (package / "engines").is_dir():
        echo(f"not used: {package / 'engines'}; Triton runs the graphs themselves", err=True)
    if not adapters:
        _name_left_out(package)


def _name_left_out(package: Path) -> None:
    """Name the graphs that were not written."""
    from sdexport.runtime.packages.listed_files import graphs_of
    from sdexport.runtime.packages.manifest import read_manifest
    from sdexport.triton.graph_models import takes_adapters

    components = read_manifest(package).components
    graphs = [graph for name, each in components.items() for graph in graphs_of(name, each)]
    left_out = list(filter(takes_adapters, graphs))
    if left_out:
        echo(f"left out: {', '.join(left_out)} (--adapter-graphs)", err=True)


def _linked_bytes(record: RepositoryRecord, repository: Path) -> int:
    """Bytes of files that the repository shares, with the package or among its models."""
    files = [file for model in record.models for file in model.files]
    return sum(f.size for f in files if (repository / f.path).stat().st_nlink > 1)
