"""sdexport preprocess."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdexport.commands.output import echo
from sdexport.commands.output_files import check_output_file, shown_path
from sdexport.commands.shared_options import FILE, json_option, print_json, without_none
from sdexport.commands.verbosity import verbosity_options

METHODS = {
    "canny": ("low", "high", "l2_gradient"),
    "soft-edges": (),
    "scribble": ("threshold",),
    "lineart": (),
    "invert": (),
    "tile": ("resolution", "downsample"),
    "inpaint": ("mask_image",),
}
"""Names of the functions of sdexport.preprocessors, each with its arguments."""
_OPTIONS = {"mask_image": "--mask"}


@click.command()
@click.argument("method", type=click.Choice(list(METHODS)), metavar="METHOD")
@click.argument("image", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The file to write.")
@click.option(
    "--low", type=float, help="For canny: edges go on while the gradient is above. Default 100."
)
@click.option(
    "--high", type=float, help="For canny: edges begin where the gradient is above. Default 200."
)
@click.option(
    "--l2-gradient",
    is_flag=True,
    default=None,
    help="For canny: measure the gradient by its Euclidean norm.",
)
@click.option(
    "--threshold",
    type=float,
    help="For scribble: 0 to 255, lower for more strokes. Default 64.",
)
@click.option(
    "--resolution",
    type=int,
    help="For tile: pixels of the shorter side. Default that of the image.",
)
@click.option(
    "--downsample", type=float, help="For tile: average over so many pixels first. Default 1."
)
@click.option(
    "--mask", "mask_image", type=FILE, help="For inpaint: bright where the image is generated."
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@json_option
@verbosity_options
def preprocess(
    method: str, image: Path, output: Path, force: bool, as_json: bool, **options: Any
) -> None:
    """Make a control image for ControlNet from an image.

    METHOD is canny, soft-edges, scribble, lineart, invert, tile or inpaint. Lines are white on
    black; invert turns a drawing on white paper into that. The file that is written is a .png,
    .jpg or .webp file; of inpaint a .npy file, since masked pixels are -1.
    """
    given = without_none(**options)
    for name in given:
        if name not in METHODS[method]:
            option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
            raise click.UsageError(f"{option} is not for {method}")
    if method == "inpaint" and "mask_image" not in given:
        raise click.UsageError("inpaint needs --mask")
    _check_name(method, output)
    check_output_file(output, force=force)

    from sdexport.runtime.images import preprocessors

    result = getattr(preprocessors, method.replace("-", "_"))(image, **given)
    width, height = _write(result, output)
    if as_json:
        print_json({"output": str(output), "width": width, "height": height})
    else:
        echo(f"{shown_path(output)}: {width}x{height}")


def _check_name(method: str, output: Path) -> None:
    """Raises: click.UsageError, InvalidArgumentError: the ending is not that of the content."""
    from sdexport.runtime.images.metadata import check_output

    if method != "inpaint":
        check_output(output)
    elif output.suffix.lower() != ".npy":
        raise click.UsageError("inpaint writes numbers, as masked pixels are -1: use a name .npy")


def _write(result: Any, output: Path) -> tuple[int, int]:
    """Write an image or an array, and return its width and height."""
    import io

    import numpy as np

    from sdexport.engines.files import write_atomically
    from sdexport.runtime.images.metadata import save_image

    if not isinstance(result, np.ndarray):
        result.info.clear()  # the settings that the image carries are not of the result
        save_image(result, output, mark=False)
        return int(result.width), int(result.height)
    content = io.BytesIO()
    np.save(content, result, allow_pickle=False)
    write_atomically(output, content.getvalue())
    return int(result.shape[3]), int(result.shape[2])
