"""sdexport verify."""

from __future__ import annotations

from pathlib import Path

import click

from sdexport.commands.common import (
    FOLDER,
    advance,
    backend_option,
    engine_dir_option,
    exit_unless,
    given,
    json_option,
    parsed,
    print_json,
    progress_bar,
)


@click.command()
@click.argument("package", type=FOLDER)
@backend_option
@engine_dir_option
@json_option
def verify(
    package: Path, backends: tuple[str, ...], engine_dir: Path | None, as_json: bool
) -> None:
    """Replay PyTorch's recorded answers; exit status 0 only if every check holds."""
    from runtime import Package
    from sdexport.verify import table
    from sdexport.verify import verify as run

    total = 2 + len(Package.load(package, verify=False).manifest.components)
    with progress_bar(total, "verify") as bar:
        checks = run(
            package, parsed(backends), progress=advance(bar), **given(engine_dir=engine_dir)
        )
    passed = all(check.passed for check in checks)
    if as_json:
        print_json({"passed": passed, "checks": [check.to_dict() for check in checks]})
    else:
        click.echo(table(checks))
    exit_unless(passed)
