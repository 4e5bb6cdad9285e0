"""sdexport verify."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sdexport.commands.memory_check import check_verification, ignore_memory_option
from sdexport.commands.output import echo
from sdexport.commands.progress import progress
from sdexport.commands.shared_options import (
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


@click.command()
@click.argument("package", type=FOLDER)
@backend_options
@click.option(
    "--against",
    metavar="SOURCE",
    help="Also compare with this checkpoint on new random inputs of several sizes; needs PyTorch. "
    "Repeat the options below as they were for the export.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of the random inputs of --against.")
@source_options
@trust_options
@ignore_memory_option
@json_option
@verbosity_options
def verify(
    package: Path,
    backends: tuple[str, ...],
    session_options: tuple[tuple[str, Any], ...],
    engine_dir: Path | None,
    low_memory: bool,
    ignore_memory: bool,
    against: str | None,
    seed: int | None,
    trusted_key: str | None,
    trust: str,
    as_json: bool,
    **of_source: Any,
) -> None:
    """Compare a package with PyTorch.

    PACKAGE contains inputs and outputs of PyTorch that were recorded when it was exported, so
    PyTorch is not needed here. The exit status is 0 only if every check passes.
    """
    from sdexport.runtime.packages.manifest import MANIFEST
    from sdexport.runtime.packages.package import Package
    from sdexport.verification.report import table

    backend = backends_of(backends)
    opened_with = session_arguments(session_options, engine_dir=engine_dir)
    if against is None:
        _require_against(of_source | {"seed": seed})
    loaded = Package.load(
        package, verify=trusted_key is not None, trusted_key=trusted_key, trust=trust
    )
    checks: list[Any] = []
    used_seed: dict[str, int] = {}
    if against is not None:
        used_seed["seed"] = secrets.randbelow(2**31) if seed is None else seed
        checks = _compare_with_checkpoint(
            loaded, backend, against, of_source, **used_seed, **opened_with
        )
    if against is None or (package / MANIFEST).is_file():  # Optimum's folders have no references
        check_verification(
            loaded, opened_with, backend, low_memory=low_memory, ignore=ignore_memory
        )
        checks = [*_replay(loaded, backend, low_memory=low_memory, **opened_with), *checks]
    passed = all(check.passed for check in checks)
    if as_json:
        signed = {"signature": asdict(loaded.signature)} if loaded.signature else {}
        rows = [check.to_dict() for check in checks]
        print_json({"passed": passed, **used_seed, **signed, "checks": rows})
    else:
        if loaded.signature:
            echo(f"signed with key {loaded.signature}")
        echo(*table(checks).split("\n"))
        if used_seed:
            echo(f"random inputs: --seed {used_seed['seed']}")
    require_passed(passed)


def _require_against(options: Mapping[str, Any]) -> None:
    """Raises: click.UsageError: an option about a checkpoint was given without --against."""
    for name, value in options.items():
        if value is not None and value is not False and value != ():  # 0 is a seed
            raise click.UsageError(f"--{name.replace('_', '-')} needs --against SOURCE")


def _replay(package: Any, backend: Any, **options: Any) -> list[Any]:
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
