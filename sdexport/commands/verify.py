"""sdexport verify."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdexport.commands.memory_check import check_verification, ignore_memory_option
from sdexport.commands.output import echo
from sdexport.commands.output_files import check_output_file
from sdexport.commands.progress import progress
from sdexport.commands.shared_options import (
    FILE,
    FOLDER,
    backend_options,
    backends_of,
    json_option,
    needs_torch,
    print_json,
    require_passed,
    session_arguments,
    source_options,
    trust_options,
)
from sdexport.commands.verbosity import verbosity_options
from sdexport.engines.errors import PackageError

if TYPE_CHECKING:
    from sdexport.verification.verification_result import Verification


@click.command()
@click.argument("package", type=FOLDER)
@backend_options
@click.option(
    "--tile", "vae_tile", type=int, help="Also check the VAE in tiles of this many pixels."
)
@click.option(
    "--against",
    metavar="SOURCE",
    help="Also compare with this checkpoint on new random inputs of several sizes; needs PyTorch. "
    "Repeat the options below as they were for the export.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of the random inputs of --against.")
@source_options
@trust_options
@click.option(
    "--html",
    type=FILE,
    help="Also write a report with the images to this HTML file, which needs no other file.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing HTML file.")
@ignore_memory_option
@json_option
@verbosity_options
def verify(
    package: Path,
    backends: tuple[str, ...],
    session_options: tuple[tuple[str, Any], ...],
    engine_dir: Path | None,
    low_memory: bool,
    vae_tile: int | None,
    ignore_memory: bool,
    against: str | None,
    seed: int | None,
    trusted_key: str | None,
    trust: str,
    html: Path | None,
    force: bool,
    as_json: bool,
    **of_source: Any,
) -> None:
    """Compare a package with PyTorch.

    PACKAGE contains inputs and outputs of PyTorch that were recorded when it was exported, so
    PyTorch is not needed here. The exit status is 0 only if every check passes.
    """
    from sdexport.engines.files import write_atomically
    from sdexport.runtime.packages.package import Package
    from sdexport.verification.verification_result import Verification
    from sdexport.verification.verifier import check_has_references

    backend = backends_of(backends)
    opened_with = session_arguments(session_options, engine_dir=engine_dir)
    if against is None:
        _require_against(of_source | {"seed": seed})
    if html is not None:
        check_output_file(html, force=force)
    loaded = Package.load(
        package, verify=trusted_key is not None, trusted_key=trusted_key, trust=trust
    )
    missing = ""
    try:
        check_has_references(loaded)
    except PackageError as error:
        if against is None:
            raise
        missing = str(error)
    used_seed: dict[str, int] = {}
    compared: list[Any] = []
    if against is not None:
        used_seed["seed"] = secrets.randbelow(2**31) if seed is None else seed
        compared = _compare_with_checkpoint(
            loaded, backend, against, of_source, **used_seed, **opened_with
        )
    found = Verification((), ("hashes and reference outputs, the package has none",))
    if not missing:
        check_verification(
            loaded, opened_with, backend, low_memory=low_memory, ignore=ignore_memory
        )
        how = {"low_memory": low_memory, "vae_tile": vae_tile}
        found = _replay(loaded, backend, **how, **opened_with)
    found = found.with_checks(compared)
    _print(found, used_seed, loaded.signature, as_json=as_json)
    if html is not None:
        write_atomically(html, found.html())
    require_passed(found.passed)


def _print(
    found: Verification, used_seed: Mapping[str, int], signature: Any, *, as_json: bool
) -> None:
    from sdexport.verification.advice import advice
    from sdexport.verification.text_report import report_lines

    if as_json:
        signed = {"signature": asdict(signature)} if signature else {}
        print_json({**found.to_dict(), **used_seed, **signed, "advice": advice(found)})
        return
    if signature:
        echo(f"signed with key {signature}")
    if used_seed:
        echo(f"random inputs: --seed {used_seed['seed']}")
    echo(*report_lines(found))


def _require_against(options: Mapping[str, Any]) -> None:
    """Raises: click.UsageError: an option about a checkpoint was given without --against."""
    for name, value in options.items():
        if value is not None and value is not False and value != ():  # 0 is a seed
            raise click.UsageError(f"--{name.replace('_', '-')} needs --against SOURCE")


def _replay(package: Any, backend: Any, **options: Any) -> Verification:
    """Compare with the reference outputs in the package."""
    from sdexport.verification.verifier import verify_package

    with progress(2 + len(package.manifest.components), "verify") as shown:
        return verify_package(package, backend, progress=shown.begin, **options)


def _compare_with_checkpoint(
    package: Any, backend: Any, source: str, of_source: dict[str, Any], **options: Any
) -> list[Any]:
    """Compare with what PyTorch computes from a checkpoint now."""
    with needs_torch("comparing with a checkpoint"):
        from sdexport.checkpoints.sources import Options
        from sdexport.verification.against_checkpoint import verify_against
    revision = of_source.pop("revision")
    with progress(4, "against") as shown:
        return verify_against(
            package,
            source,
            backend,
            revision=revision,
            options=Options(**of_source),
            progress=shown.begin,
            **options,
        )
