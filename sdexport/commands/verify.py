"""sdexport verify."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sdexport.commands.shared_options import (
    FOLDER,
    advance,
    backend_option,
    engine_dir_option,
    exit_unless,
    json_option,
    low_memory_option,
    needs_torch,
    opening,
    parsed,
    print_json,
    progress_bar,
    session_option,
    source_options,
)


@click.command()
@click.argument("package", type=FOLDER)
@backend_option
@session_option
@engine_dir_option
@low_memory_option
@click.option(
    "--against",
    metavar="SOURCE",
    help="Compare with this checkpoint too, on fresh random inputs of several sizes; needs "
    "PyTorch. The options below are those that it was exported with.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of the inputs for --against.")
@source_options
@json_option
def verify(
    package: Path,
    backends: tuple[str, ...],
    session_options: tuple[tuple[str, Any], ...],
    engine_dir: Path | None,
    low_memory: bool,
    against: str | None,
    seed: int | None,
    as_json: bool,
    **of_source: Any,
) -> None:
    """Replay PyTorch's recorded answers; exit status 0 only if every check holds."""
    from sdexport.runtime.packages.manifest import MANIFEST
    from sdexport.runtime.packages.package import Package
    from sdexport.verification.report import table

    backend, engines = parsed(backends), opening(session_options, engine_dir=engine_dir)
    said: dict[str, Any] = {}
    if against is None:
        _check_alone(of_source | {"seed": seed})
    loaded = Package.load(package, verify=False)
    checks: list[Any] = []
    if against is not None:
        said["seed"] = secrets.randbelow(2**31) if seed is None else seed
        checks = _afresh(loaded, backend, engines, against, said["seed"], of_source)
    if against is None or (package / MANIFEST).is_file():  # Optimum's folders hold no answers
        checks = [*_recorded(loaded, backend, engines, low_memory=low_memory), *checks]
    passed = all(check.passed for check in checks)
    if as_json:
        print_json({"passed": passed, **said, "checks": [check.to_dict() for check in checks]})
    else:
        click.echo(table(checks))
        if said:
            click.echo(f"inputs of --seed {said['seed']}")
    exit_unless(passed)


def _check_alone(options: Mapping[str, Any]) -> None:
    """Options that say something of a checkpoint want one."""
    for name, value in options.items():
        if value is not None and value is not False and value != ():  # 0 is a seed
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --against SOURCE")


def _recorded(
    package: Any, backend: Any, engines: Mapping[str, Any], *, low_memory: bool
) -> list[Any]:
    from sdexport.verification.verifier import verify_package

    with progress_bar(2 + len(package.manifest.components), "verify") as bar:
        return verify_package(
            package, backend, progress=advance(bar), low_memory=low_memory, **engines
        )


def _afresh(
    package: Any,
    backend: Any,
    engines: Mapping[str, Any],
    source: str,
    seed: int,
    of_source: dict[str, Any],
) -> list[Any]:
    with needs_torch("comparing with a checkpoint"):
        from sdexport.checkpoints.sources import Options
        from sdexport.verification.against_checkpoint import verify_against
    revision = of_source.pop("revision")
    with progress_bar(4, "against") as bar:
        return verify_against(
            package,
            source,
            backend,
            seed=seed,
            revision=revision,
            options=Options(**of_source),
            progress=advance(bar),
            **engines,
        )
