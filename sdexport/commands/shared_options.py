"""Options and small helpers that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from sdexport.commands.output import json_document

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
engine_dir_option = click.option(
    "--engine-dir", type=FOLDER, help="Folder of built engines; default PACKAGE/engines."
)


class BackendType(click.ParamType[Any]):
    """A backend with options, for all components or for one; repeatable."""

    name = "[COMPONENT=]NAME[,OPTION=VALUE...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        backends_of([value])
        return value


def backends_of(values: Sequence[str]) -> Any:
    """The values of --backend in the form that `sdexport.load_pipeline` takes."""
    from sdexport.runtime.component_backends import parse_backends

    return parse_backends(values)


class SessionOptionType(click.ParamType[tuple[str, Any]]):
    """NAME=VALUE with a value that is read as a number or a truth value where it is one."""

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
    type=SessionOptionType(),
    multiple=True,
    help="An option of every backend that has it, such as threads=4. Repeatable.",
)
_BACKEND_OPTIONS = (
    click.option(
        "--backend",
        "backends",
        type=BackendType(),
        multiple=True,
        help="onnxruntime (default), onnxruntime-cuda, webgpu, openvino, tensorrt, tensorrt-rtx or "
        "auto, perhaps with options: openvino,precision=bf16. For one component: unet=openvino. "
        "Repeatable.",
    ),
    session_option,
    engine_dir_option,
    click.option("--low-memory", is_flag=True, help="Keep only one component in memory at a time."),
)
_NOT_OF_SESSIONS = {
    *("folder", "package", "graph", "path", "backend", "sessions", "plan", "digest"),
    *("verify", "hashes", "only", "progress", "low_memory", "max_batch", "vae_tile"),
    *("source", "revision", "options", "seed", "trusted_key", "trust", "verify_hashes", "wait"),
    *("expected_images", "lora_dir"),
}
"""Arguments of the functions that open and verify packages, which --option must not set."""

_TRUST_OPTIONS = (
    click.option(
        "--key",
        "trusted_key",
        metavar="KEY",
        help="Take the package only if it was signed with this key: a public key of minisign or of "
        "'sdexport sign', its file or its text. Engines in PACKAGE/engines are not used then.",
    ),
    click.option(
        "--trust",
        type=click.Choice(["warn", "signed"]),
        default="warn",
        show_default=True,
        help="What happens if graphs hold unknown operators and --key did not sign them: a "
        "warning, or an error. With signed, engines in PACKAGE/engines are not used either.",
    ),
)
verify_hashes_option = click.option(
    "--verify-hashes",
    is_flag=True,
    help="Read every file to compare its hash. By default large files are not read again that an "
    "earlier command has read and that have not changed since. --key and --trust signed imply it.",
)
_SOURCE_OPTIONS = (
    click.option("--revision", help="Branch, tag or commit, for a model id of the hub."),
    click.option(
        "--variant", metavar="NAME", help="Which weights of a folder to take, such as fp16."
    ),
    click.option(
        "--tokenizer",
        type=FOLDER,
        help="Folder with CLIP's vocab.json and merges.txt, for a single file.",
    ),
    click.option(
        "--lora",
        multiple=True,
        metavar="PATH[:SCALE]",
        help="Merge this LoRA, a file or a folder. Repeatable.",
    ),
    click.option(
        "--embedding",
        multiple=True,
        metavar="PATH[:WORD]",
        help="Add this textual inversion embedding, a file or a folder. Repeatable.",
    ),
    click.option(
        "--vae", type=click.Path(path_type=Path), help="Use this VAE instead, a folder or a file."
    ),
    click.option(
        "--prediction-type",
        type=click.Choice(["epsilon", "v_prediction", "sample"]),
        help="What the UNet predicts, if the file does not say.",
    ),
    click.option(
        "--timestep-spacing",
        type=click.Choice(["leading", "trailing", "linspace"]),
        help="Spacing of the timesteps, if the checkpoint says another: trailing for Turbo and "
        "Lightning.",
    ),
    click.option("--ema", is_flag=True, help="Use the averaged (EMA) weights of a single file."),
    click.option(
        "--no-safety-checker",
        is_flag=True,
        help="Leave out the checkpoint's safety checker, which 'generate --safety' needs.",
    ),
    click.option(
        "--allow-pickle", is_flag=True, help="Also read .ckpt, .pt and .bin files, weights only."
    ),
)


def backend_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which backends run the components, and how they are opened."""
    return with_options(command, _BACKEND_OPTIONS)


def trust_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say whose signature a package needs; see `trust_arguments`."""
    return with_options(command, _TRUST_OPTIONS)


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how a checkpoint is read and what is merged into it."""
    return with_options(command, _SOURCE_OPTIONS)


def with_options(command: Callable[..., None], options: Sequence[Any]) -> Callable[..., None]:
    """Add options to a command, which lists them in this order."""
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def needs_torch(what: str) -> Iterator[None]:
    """Name the pip command if an import inside the block fails.

    Raises: MissingDependencyError.
    """
    try:
        yield
    except ImportError as error:
        from sdexport.engines.errors import MissingDependencyError

        raise MissingDependencyError(
            f"{what} needs {error.name or 'PyTorch and diffusers'}, which cannot be imported; "
            "run: pip install 'sdexport[export]'"
        ) from error


def print_json(value: object) -> None:
    """Print one JSON document; in ASCII where stdout cannot write its characters.

    Raises: ValueError: it holds NaN or infinity, which JSON does not have.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, allow_nan=False)
    click.echo(json_document(text))


def session_arguments(session_options: Sequence[tuple[str, Any]], **own: Any) -> dict[str, Any]:
    """Keyword arguments that open components: the command's own, and those of --option.

    Raises: click.UsageError: --option names something that is not an option of a backend.
    """
    for name, _ in session_options:
        if name in _NOT_OF_SESSIONS or name in own:
            raise click.UsageError(f"--option {name}: backends have no such option")
    return without_none(**own) | dict(session_options)


def without_none(**options: Any) -> dict[str, Any]:
    """The options that have a value; for the others the callee's default holds."""
    return {name: value for name, value in options.items() if value is not None}


def require_passed(passed: bool) -> None:
    """Fail if a check of the package failed.

    Raises: VerificationError.
    """
    from sdexport.engines.errors import VerificationError

    if not passed:
        raise VerificationError("the package does not reproduce the reference outputs")
