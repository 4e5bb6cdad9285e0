"""The command line. Heavy imports stay inside the commands that need them."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from runtime.version import VERSION

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


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
    return " ".join(str(error).split()) or type(error).__name__


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
def _bar(total: int, description: str, unit: str = "it") -> Iterator[Any]:
    """A progress bar on stderr, silent where stderr is no terminal."""
    from tqdm import tqdm

    with tqdm(
        total=total, desc=description, unit=unit, unit_scale=unit == "B", disable=None, leave=False
    ) as bar:
        yield bar


def _advance(bar: Any) -> Callable[[str], None]:
    def advance(what: str) -> None:
        bar.set_description(what)
        bar.update()

    return advance


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="sdexport")
@click.option("--debug", is_flag=True, help="Show a traceback for every error.")
def main(debug: bool) -> None:
    """A Stable Diffusion checkpoint becomes one folder that paints without PyTorch."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Once())
    if threading.current_thread() is threading.main_thread():
        # as Ctrl-C does: what is half-written is removed on the way out
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


class _Once(logging.Filter):
    """Says each thing once: a picture after another may give the same warning."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self._said
        self._said.add(message)
        return new


@main.command()
@click.argument("source")
@click.argument("package", type=FOLDER)
@click.option("--opset", type=click.IntRange(18, 24), default=23, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="fp16 keeps float32 where half would not do.",
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
    manifest = _export(
        source, package, files, opset=opset, precision=precision, revision=revision, force=force
    )
    size = sum(r.size for c in manifest.components.values() for r in c.files)
    click.echo(f"{package}: {', '.join(manifest.components)}; {size / 1e6:.0f} MB")
    if manifest.verification is None:
        click.echo("not verified: install sdexport[cpu] and run 'sdexport verify'", err=True)


class _SpanType(click.ParamType[Any]):
    name = "MIN:OPT:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from engines.profiles import Span

        try:
            return Span.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Backends(click.ParamType[Any]):
    """NAME, or COMPONENT=NAME; given several times, each component may have its own."""

    name = "[COMPONENT=]NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from runtime.backends import parse_backends

        parse_backends([value])
        return value


def _backends(values: tuple[str, ...]) -> Any:
    from runtime.backends import parse_backends

    return parse_backends(values)


backend_option = click.option(
    "--backend",
    "backends",
    type=_Backends(),
    multiple=True,
    help="onnxruntime (default), onnxruntime-cuda, openvino, tensorrt, tensorrt-rtx or auto; "
    "also for one component, such as unet=openvino, and several times.",
)
engine_dir_option = click.option(
    "--engine-dir", type=FOLDER, help="Built engines, instead of PACKAGE/engines."
)


def _export(
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
    with _bar(12, "export") as bar:

        def progress(component: str, stage: str) -> None:
            bar.set_description(f"{component}: {stage}")
            bar.update()

        return run(source, package, options=Options(**files or {}), progress=progress, **options)


@main.command()
@click.argument("package", type=FOLDER)
@backend_option
@engine_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify(
    package: Path, backends: tuple[str, ...], engine_dir: Path | None, as_json: bool
) -> None:
    """Replay PyTorch's recorded answers; exit status 0 only if every check holds."""
    from sdexport.verify import table
    from sdexport.verify import verify as run

    with _bar(6, "verify") as bar:
        checks = run(
            package, _backends(backends), progress=_advance(bar), **_given(engine_dir=engine_dir)
        )
    passed = all(check.passed for check in checks)
    if as_json:
        _print_json({"passed": passed, "checks": [check.to_dict() for check in checks]})
    else:
        click.echo(table(checks))
    _exit_unless(passed)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _exit_unless(passed: bool) -> None:
    if not passed:
        click.echo("error: the package does not answer as PyTorch did", err=True)
        sys.exit(1)


class _Interval(click.ParamType[tuple[float, float]]):
    name = "START:END"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        try:
            start, end = map(float, str(value).split(":"))
        except ValueError:
            self.fail(f"{value!r} is no interval; expected two numbers such as 0.1:0.8", param, ctx)
        return start, end


@main.command()
@click.argument("package", type=FOLDER)
@click.argument("prompt", required=False)
@click.option("-o", "--output", type=FILE, required=True, help="A .png.")
@click.option("--negative", "negative_prompt", help="What should not be seen.")
@click.option("--steps", "num_inference_steps", type=int, default=25, show_default=True)
@click.option("--guidance", "guidance_scale", type=float, default=7.5, show_default=True)
@click.option(
    "--rescale", "guidance_rescale", type=float, default=0.0, help="0..1, against overexposure."
)
@click.option(
    "--guidance-interval",
    type=_Interval(),
    default="0:1",
    show_default=True,
    help="Fractions of the steps that are guided; the others run no second pass.",
)
@click.option("--seed", type=int, help="Default: a random one, which is printed.")
@click.option(
    "--noise",
    "noise_device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Whose PyTorch generator the noise is equal to.",
)
@click.option("--scheduler", help="Such as euler_a or dpm++_2m_karras; default the package's own.")
@click.option("--eta", type=float, default=0.0, help="0..1, for ddim and tcd.")
@click.option("--size", type=_Size(), help="Default the image's, or the package's own.")
@click.option("--image", type=FILE, help="Begin from this picture.")
@click.option("--strength", type=float, help="0..1, how much of the image is given up.")
@click.option("--mask", "mask_image", type=FILE, help="Paint only where this picture is bright.")
@click.option(
    "--resize",
    "resize_mode",
    type=click.Choice(["stretch", "crop", "fill"]),
    default="stretch",
    show_default=True,
    help="How image and mask get to the size.",
)
@click.option(
    "--weights", "prompt_weights", is_flag=True, help="Read (word:1.3), and long prompts."
)
@click.option("--clip-skip", type=int, default=0, help="Layers of the text encoder to leave out.")
@click.option("--embeds", type=FILE, help="Paint from this .npz instead of PROMPT.")
@click.option("--save-embeds", type=FILE, help="Write the prompt's embeddings to this .npz.")
@click.option("--count", type=click.IntRange(1, 1000), default=1, help="With seeds that follow.")
@click.option("--previews", type=FOLDER, help="Write a picture of each step, and an animation.")
@click.option(
    "--preview-with",
    type=click.Choice(["vae", "linear"]),
    default="vae",
    show_default=True,
    help="linear is cheap and coarse.",
)
@click.option("--tile", "vae_tile", type=int, help="Let the VAE work in tiles of so many pixels.")
@backend_option
@engine_dir_option
@click.option("--low-memory", is_flag=True, help="Hold one component in memory at a time.")
@click.option("--force", is_flag=True, help="Overwrite existing pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def generate(
    package: Path,
    prompt: str | None,
    output: Path,
    seed: int | None,
    size: tuple[int, int] | None,
    embeds: Path | None,
    save_embeds: Path | None,
    count: int,
    previews: Path | None,
    preview_with: str,
    vae_tile: int | None,
    backends: tuple[str, ...],
    engine_dir: Path | None,
    low_memory: bool,
    force: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Paint PROMPT with PACKAGE."""
    from runtime import load_pipeline
    from runtime.noise import check_seed
    from sdexport.generate import load_arguments, paint, picture_paths, save_embeds_of

    if (prompt is None) == (embeds is None) or (embeds and save_embeds):
        raise click.UsageError("give either PROMPT, which --save-embeds can keep, or --embeds")
    paths = picture_paths(output, count, force=force)
    first = int.from_bytes(os.urandom(4)) if seed is None else check_seed(seed)
    arguments |= {"width": size[0], "height": size[1]} if size else {}
    arguments |= load_arguments(embeds) if embeds else {"prompt": prompt}
    steps = count * max(arguments["num_inference_steps"], 1)
    with (
        load_pipeline(
            package,
            _backends(backends),
            vae_tile=vae_tile,
            low_memory=low_memory,
            **_given(engine_dir=engine_dir),
        ) as pipe,
        _bar(steps, "generate") as bar,
    ):
        if save_embeds:
            save_embeds_of(pipe, save_embeds, arguments, force=force)
        report = paint(
            pipe,
            paths,
            first,
            arguments,
            previews=previews,
            preview_with=preview_with,
            on_step=bar.update,
            on_picture=lambda path, seed: None if as_json else click.echo(f"{path} (seed {seed})"),
        )
    if as_json:
        _print_json({"images": report})


@main.command()
@click.argument("package", type=FOLDER)
@click.option("--backend", required=True, type=click.Choice(["tensorrt", "tensorrt-rtx"]))
@click.option("--component", "components", multiple=True, help="Build this one only.")
@click.option("--batch", type=_SpanType(), help="Pictures at once; default 1:1:4.")
@click.option("--height", type=_SpanType(), help="Pixels; default around the package's own.")
@click.option("--width", type=_SpanType(), help="Pixels; default around the package's own.")
@click.option("--tokens", type=_SpanType(), help="Of a prompt; default 77:77:231.")
@click.option("--guidance/--no-guidance", default=True, help="Room for the unconditional half.")
@click.option("--static", is_flag=True, help="Add a profile for the OPT sizes alone.")
@click.option("--refittable", is_flag=True, help="Weights can be replaced; needs a GPU.")
@click.option("--weight-stripped", is_flag=True, help="Plans without weights; needs a GPU.")
@click.option("--version-compatible", is_flag=True, help="For later versions of TensorRT too.")
@click.option("--hardware-compatible", is_flag=True, help="tensorrt: for every GPU from Ampere on.")
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    help="tensorrt-rtx: such as 8.9; default portable.",
)
@click.option("--optimization-level", type=click.IntRange(0, 5))
@click.option("--workspace", type=click.IntRange(1), metavar="MB", help="Scratch memory.")
@click.option("--weight-streaming", is_flag=True, help="Weights may stay in host memory.")
@click.option("--timing-cache", type=FILE, help="Keep what the builder measures in this file.")
@click.option("--engine-dir", type=FOLDER, help="Write here instead of PACKAGE/engines.")
@click.option("--rebuild-stale", is_flag=True, help="Replace engines of something else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def build(
    package: Path,
    backend: str,
    components: tuple[str, ...],
    engine_dir: Path | None,
    timing_cache: Path | None,
    rebuild_stale: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Build engines for TensorRT or TensorRT-RTX from PACKAGE.

    TensorRT-RTX builds without a GPU. An engine that is there already, for the same graph, library,
    sizes and options, is kept.
    """
    from engines.tensorrt_build import BuildOptions
    from runtime import Package
    from sdexport.build import Sizes, report
    from sdexport.build import build as run

    sizes = {k: arguments.pop(k) for k in ("batch", "height", "width", "tokens")}
    flags = {k: arguments.pop(k) for k in ("guidance", "static")}
    workspace = arguments.pop("workspace")
    arguments["workspace"] = workspace * 10**6 if workspace else None
    options = BuildOptions(**arguments)
    with _bar(100, "build") as bar:

        def progress(component: str, phase: str, share: float) -> None:
            bar.set_description(f"{component}: {phase}")
            bar.n = round(100 * share)
            bar.refresh()

        built = run(
            Package.load(package),
            backend=backend,
            sizes=Sizes(**_given(**sizes), **flags),
            components=components,
            engine_dir=engine_dir,
            options=options,
            timing_cache=timing_cache,
            rebuild_stale=rebuild_stale,
            progress=progress,
        )
    if as_json:
        _print_json({"engines": report(built)})
        return
    for one in built:
        how = f"{one.seconds:.1f} s" if one.built else "was there"
        size = one.sidecar.plan_size / 1e6
        click.echo(f"{one.sidecar.component:<14}{size:8.1f} MB  {how:<10} {one.plan}")


@main.command()
@click.argument("package", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(package: Path, as_json: bool) -> None:
    """Check every file's hash and show what is in PACKAGE."""
    from runtime import Package

    total = sum(f.stat().st_size for f in package.rglob("*") if f.is_file())
    with _bar(total, "hashes", "B") as bar:
        loaded = Package.load(package, on_bytes=bar.update)
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
                click.echo(
                    f"  {output} against PyTorch: {figures['metric']} {figures['error']:.1e}"
                )


@main.command()
@click.argument("folder", metavar="[DIR]", type=FOLDER, default="sdexport-demo")
@click.option("--force", is_flag=True, help="Replace an existing demo.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def demo(folder: Path, force: bool, as_json: bool) -> None:
    """Export the embedded model, verify it and paint a sheet of pictures into DIR."""
    from sdexport.demo import STEPS, run

    with _bar(6 + STEPS, "demo") as bar:
        report = run(folder, _export, force=force, progress=_advance(bar))
    if as_json:
        _print_json(report)
    else:
        click.echo(report["table"])
        for stage, seconds in report["seconds"].items():
            click.echo(f"{stage:<9}{seconds:7.1f} s")
        click.echo(f"package: {report['package']}\nsheet:   {report['sheet']}")
    _exit_unless(report["passed"])
