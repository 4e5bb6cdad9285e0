"""The command line. Heavy imports stay inside the commands that need them."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from runtime.version import VERSION

FOLDER = click.Path(file_okay=False, path_type=Path)


class _Group(click.Group):
    """Turns a user's mistake into one line on stderr and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if ctx.params.get("debug") or not _is_mistake(error):
                raise
            click.echo(f"error: {_message(error)}", err=True)
            ctx.exit(1)


def _is_mistake(error: Exception) -> bool:
    """Errors with a message for the user; anything else is a bug and keeps its traceback."""
    from engines import EngineError
    from runtime import PackageError

    kinds = (ValueError, OSError, ImportError, MemoryError, EngineError, PackageError)
    return isinstance(error, kinds) or type(error).__name__ == "VerificationError"


def _message(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory for this; try a smaller size or fewer pictures"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = str(error) or type(error).__name__
    return text if type(error).__name__ == "VerificationError" else " ".join(text.split())


class _Size(click.ParamType[tuple[int, int]]):
    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        width, _, height = str(value).lower().partition("x")
        if not (width.isdecimal() and height.isdecimal() and len(value) < 20):
            self.fail(f"{value!r} is no size; expected WIDTHxHEIGHT such as 512x768", param, ctx)
        return int(width), int(height)


@contextmanager
def _bar(total: int, description: str) -> Iterator[Any]:
    """A progress bar on stderr, silent where stderr is no terminal."""
    from tqdm import tqdm

    with tqdm(total=total, desc=description, disable=None, leave=False) as bar:
        yield bar


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="sdexport")
@click.option("--debug", is_flag=True, help="Show a traceback for every error.")
def main(debug: bool) -> None:
    """A Stable Diffusion checkpoint becomes one folder that paints without PyTorch."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)


@main.command()
@click.argument("source")
@click.argument("package", type=FOLDER)
@click.option("--opset", type=click.IntRange(18, 24), default=23, show_default=True)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--force", is_flag=True, help="Replace an existing package.")
def export(source: str, package: Path, opset: int, revision: str | None, force: bool) -> None:
    """Export SOURCE, a diffusers folder or a hub id, to the folder PACKAGE."""
    manifest = _export(source, package, opset=opset, revision=revision, force=force)
    size = sum(r.size for c in manifest.components.values() for r in c.files)
    click.echo(f"{package}: {', '.join(manifest.components)}; {size / 1e6:.0f} MB")
    if manifest.verification is None:
        click.echo("not verified: install sdexport[cpu] and run 'sdexport verify'", err=True)


def _export(source: str | Path, package: Path, **options: Any) -> Any:
    try:
        from sdexport.export import export as run
    except ImportError as error:
        raise ImportError(
            f"exporting needs {error.name}; run: pip install 'sdexport[export]'"
        ) from error
    with _bar(12, "export") as bar:

        def progress(component: str, stage: str) -> None:
            bar.set_description(f"{component}: {stage}")
            bar.update()

        return run(source, package, progress=progress, **options)


@main.command()
@click.argument("package", type=FOLDER)
@click.option("--backend", default="onnxruntime", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify(package: Path, backend: str, as_json: bool) -> None:
    """Replay PyTorch's recorded answers; exit status 0 only if every check holds."""
    from sdexport.verify import table
    from sdexport.verify import verify as run

    checks = run(package, backend)
    passed = all(check.passed for check in checks)
    if as_json:
        _print_json({"passed": passed, "checks": [check.to_dict() for check in checks]})
    else:
        click.echo(table(checks))
    _exit_unless(passed)


def _exit_unless(passed: bool) -> None:
    if not passed:
        click.echo("error: the package does not answer as PyTorch did", err=True)
        sys.exit(1)


@main.command()
@click.argument("package", type=FOLDER)
@click.argument("prompt")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A .png."
)
@click.option("--negative", default="", help="What the picture should not show.")
@click.option("--steps", type=int, default=25, show_default=True)
@click.option("--guidance", type=float, default=7.5, show_default=True)
@click.option("--seed", type=int, help="Default: a random one, which is printed.")
@click.option(
    "--scheduler", help="Such as ddim, euler_a or dpm++_2m_karras; default the package's own."
)
@click.option("--size", type=_Size(), help="Default the package's own.")
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="With seeds that follow.",
)
@click.option("--backend", default="onnxruntime", show_default=True)
@click.option("--force", is_flag=True, help="Overwrite existing pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def generate(
    package: Path,
    prompt: str,
    output: Path,
    negative: str,
    steps: int,
    guidance: float,
    seed: int | None,
    scheduler: str | None,
    size: tuple[int, int] | None,
    count: int,
    backend: str,
    force: bool,
    as_json: bool,
) -> None:
    """Paint PROMPT with PACKAGE."""
    from runtime import load_pipeline, save_png
    from runtime.noise import check_seed

    paths = _picture_paths(output, count, force=force)
    first = int.from_bytes(os.urandom(4)) if seed is None else check_seed(seed)
    width, height = size or (None, None)
    report = []
    with load_pipeline(package, backend) as pipe, _bar(count * max(steps, 1), "generate") as bar:
        for number, path in enumerate(paths):
            result = pipe(
                prompt,
                negative,
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=guidance,
                seed=(first + number) % 2**64,
                scheduler=scheduler,
                on_step=lambda step: bar.update() and None,
            )
            save_png(result.images[0], path)
            report.append(
                {"path": str(path)} | vars(result.parameters[0]) | {"seconds": dict(result.seconds)}
            )
            if not as_json:
                click.echo(f"{path} (seed {result.parameters[0].seed})")
    if as_json:
        _print_json({"images": report})


def _picture_paths(output: Path, count: int, *, force: bool) -> list[Path]:
    """OUT.png, or OUT-0.png and so on; checked before anything is painted."""
    if output.suffix.lower() != ".png":
        raise ValueError(f"{output}: pictures are written as PNG; give a name that ends in .png")
    folder = output.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{output}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{output}: the folder {folder} cannot be written")
    paths = [output]
    if count > 1:
        paths = [output.with_stem(f"{output.stem}-{number}") for number in range(count)]
    present = [path for path in paths if path.exists()]
    if present and not force:
        raise FileExistsError(f"{present[0]} exists; give --force to overwrite it")
    return paths


@main.command()
@click.argument("package", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(package: Path, as_json: bool) -> None:
    """Check every file's hash and show what is in PACKAGE."""
    from runtime import Package

    loaded = Package.load(package)
    manifest = loaded.manifest
    if as_json:
        _print_json(json.loads(manifest.to_json()) | {"size": loaded.size})
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
                click.echo(f"  {output} was {figures['error']:.1e} from PyTorch's (relative)")


@main.command()
@click.argument("folder", metavar="[DIR]", type=FOLDER, default="sdexport-demo")
@click.option("--force", is_flag=True, help="Replace an existing demo.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def demo(folder: Path, force: bool, as_json: bool) -> None:
    """Export the embedded model, verify it and paint a sheet of pictures into DIR."""
    from sdexport.demo import run

    report = run(folder, _export, force=force)
    if as_json:
        _print_json(report)
    else:
        click.echo(report["table"])
        for stage, seconds in report["seconds"].items():
            click.echo(f"{stage:<9}{seconds:7.1f} s")
        click.echo(f"package: {report['package']}\nsheet:   {report['sheet']}")
    _exit_unless(report["passed"])
