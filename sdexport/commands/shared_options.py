"""What several commands share: option types, progress bars, JSON."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
low_memory_option = click.option(
    "--low-memory", is_flag=True, help="Hold one component in memory at a time."
)


class Backends(click.ParamType[Any]):
    """NAME, or COMPONENT=NAME; given several times, each component may have its own."""

    name = "[COMPONENT=]NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from sdexport.runtime.component_backends import parse_backends

        parse_backends([value])
        return value


def parsed(values: tuple[str, ...]) -> Any:
    """What --backend said, as `sdexport.runtime.load_pipeline` takes it."""
    from sdexport.runtime.component_backends import parse_backends

    return parse_backends(values)


backend_option = click.option(
    "--backend",
    "backends",
    type=Backends(),
    multiple=True,
    help="onnxruntime (default), onnxruntime-cuda, openvino, tensorrt, tensorrt-rtx or auto; "
    "also for one component, such as unet=openvino, and several times.",
)


class SessionOption(click.ParamType[tuple[str, Any]]):
    name = "NAME=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        from sdexport.runtime.component_backends import parse_option

        try:
            return parse_option(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


session_option = click.option(
    "--option",
    "session_options",
    type=SessionOption(),
    multiple=True,
    help="Of the backend's sessions, such as precision=bf16 or threads=4; repeatable.",
)
engine_dir_option = click.option(
    "--engine-dir", type=FOLDER, help="Built engines, instead of PACKAGE/engines."
)

_SOURCE_OPTIONS = (
    click.option("--revision", help="Branch, tag or commit of a hub id."),
    click.option(
        "--tokenizer", type=FOLDER, help="CLIP's vocab.json and merges.txt, for one file."
    ),
    click.option("--lora", multiple=True, metavar="FILE[:SCALE]", help="Merge this; repeatable."),
    click.option(
        "--embedding", multiple=True, metavar="FILE[:WORD]", help="Add this word; repeatable."
    ),
    click.option("--vae", type=click.Path(path_type=Path), help="Take this VAE, folder or file."),
    click.option(
        "--prediction-type",
        type=click.Choice(["epsilon", "v_prediction"]),
        help="What the UNet predicts, where the file does not tell.",
    ),
    click.option("--ema", is_flag=True, help="Take the averaged weights of a single file."),
    click.option("--allow-pickle", is_flag=True, help="Read .ckpt, .pt and .bin, weights alone."),
)


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say how a checkpoint is read, and what is changed in it."""
    for option in reversed(_SOURCE_OPTIONS):
        command = option(command)
    return command


@contextmanager
def needs_torch(what: str) -> Iterator[None]:
    """An import that fails inside names the pip command."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{what} needs {error.name or 'PyTorch and diffusers'}, which cannot be imported; "
            "run: pip install 'sdexport[export]'"
        ) from error


@contextmanager
def progress_bar(total: int | None, description: str, unit: str = "it") -> Iterator[Any]:
    """A progress bar on stderr whose clock runs, silent where stderr is no terminal."""
    from tqdm import tqdm

    with tqdm(
        total=total, desc=description, unit=unit, unit_scale=unit == "B", disable=None, leave=False
    ) as bar:
        done = threading.Event()

        def run_clock() -> None:
            while not done.wait(1.0):
                bar.refresh()

        clock = threading.Thread(target=run_clock, daemon=True)
        if not bar.disable:
            clock.start()
        try:
            yield bar
        finally:
            done.set()
            if clock.is_alive():
                clock.join()


def advance(bar: Any) -> Callable[[str], None]:
    """A callback that names what begins and counts it."""

    def advance(what: str) -> None:
        bar.set_description(what)
        bar.update()

    return advance


def print_json(value: object) -> None:
    """Print one JSON document; ValueError for NaN, which JSON does not know."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def opening(session_options: Sequence[tuple[str, Any]], **own: Any) -> dict[str, Any]:
    """Arguments that say how components are opened: the command's own, and those of --option.

    Raises: UsageError: --option names something that is none of a session's options.
    """
    taken = {*own, "low_memory", "verify", "max_batch", "sessions", "progress", "plan", "digest"}
    for name, _ in session_options:
        if name in taken:
            raise click.UsageError(f"--option {name}: no option of a backend's sessions")
    return given(**own) | dict(session_options)


def given(**options: Any) -> dict[str, Any]:
    """Those options that were given; the others keep the default of what is called."""
    return {name: value for name, value in options.items() if value is not None}


def exit_unless(passed: bool) -> None:
    """Exit status 1, and why, for a package that failed its checks."""
    if not passed:
        click.echo("error: the package does not reproduce the reference outputs", err=True)
        sys.exit(1)
