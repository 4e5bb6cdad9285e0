"""sdexport generate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from sdexport.commands.progress import progress
from sdexport.commands.shared_options import (
    FILE,
    FOLDER,
    backend_options,
    backends_of,
    json_option,
    print_json,
    session_arguments,
)
from sdexport.commands.value_types import IntervalType, SizeType
from sdexport.commands.verbosity import verbosity_options

STEPS = 25
"""Enough for most schedulers; the library's default is 50, as in diffusers."""


@click.command()
@click.argument("package", type=FOLDER)
@click.argument("prompt", required=False)
@click.option("-o", "--output", type=FILE, required=True, help="The .png file to write.")
@click.option("--negative", "negative_prompt", help="What the image should not show.")
@click.option(
    "--steps",
    "num_inference_steps",
    type=int,
    help="Default 25; 4 for latent consistency models.",
)
@click.option(
    "--guidance",
    "guidance_scale",
    type=float,
    help="Default 7.5; 5 for SDXL, 8.5 for latent consistency models. Use 0 for Turbo models.",
)
@click.option(
    "--rescale",
    "guidance_rescale",
    type=float,
    default=0.0,
    show_default=True,
    help="0 to 1, against overexposure with high guidance.",
)
@click.option(
    "--guidance-interval",
    type=IntervalType(),
    default="0:1",
    show_default=True,
    help="Part of the steps that use guidance, as fractions; the others take half the time.",
)
@click.option(
    "--cache-interval",
    type=IntervalType(),
    help="Between these fractions of the steps, every second step reuses the UNet's last "
    "prediction: faster, but not exact.",
)
@click.option(
    "--seed",
    type=int,
    help="The same seed gives the same image. Default: a random one, which is printed.",
)
@click.option(
    "--noise",
    "noise_device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Draw the noise as PyTorch does on this device.",
)
@click.option(
    "--scheduler",
    help="Such as euler_a or dpm++_2m_karras; default the package's own scheduler.",
)
@click.option("--eta", type=float, default=0.0, show_default=True, help="0 to 1, for ddim and tcd.")
@click.option(
    "--size", type=SizeType(), help="In pixels; default that of --image, or the package's own."
)
@click.option("--image", type=FILE, help="Start from this image.")
@click.option(
    "--strength",
    type=float,
    help="0 to 1, how much --image is changed; default 0.8, for SDXL 0.3.",
)
@click.option(
    "--mask", "mask_image", type=FILE, help="Change --image only where this image is bright."
)
@click.option(
    "--resize",
    "resize_mode",
    type=click.Choice(["stretch", "crop", "fill"]),
    default="stretch",
    show_default=True,
    help="How --image and --mask are brought to the size.",
)
@click.option(
    "--weights",
    "prompt_weights",
    is_flag=True,
    help="Read weights such as (word:1.3) in the prompt, and do not cut long prompts.",
)
@click.option(
    "--clip-skip",
    type=int,
    default=0,
    show_default=True,
    help="Skip this many of the text encoder's last layers.",
)
@click.option("--embeds", type=FILE, help="Use the embeddings in this .npz file, not PROMPT.")
@click.option("--save-embeds", type=FILE, help="Write the prompt's embeddings to this .npz file.")
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Number of images, with consecutive seeds.",
)
@click.option(
    "--previews", type=FOLDER, help="Write an image of each step and an animation to this folder."
)
@click.option(
    "--preview-with",
    type=click.Choice(["vae", "linear"]),
    default="vae",
    show_default=True,
    help="How previews are decoded; linear is fast and coarse.",
)
@click.option("--tile", "vae_tile", type=int, help="Let the VAE work in tiles of this many pixels.")
@backend_options
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@json_option
@verbosity_options
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
    session_options: tuple[tuple[str, Any], ...],
    engine_dir: Path | None,
    low_memory: bool,
    force: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Generate images from a prompt.

    The settings of each image are written to its file, as AUTOMATIC1111 does.
    """
    from sdexport.commands.generate_images import generate_images, image_paths, save_embeds_of
    from sdexport.runtime.noise.torch_generator import check_seed
    from sdexport.runtime.pipeline import load_pipeline

    if (prompt is None) == (embeds is None) or (embeds and save_embeds):
        raise click.UsageError("give either PROMPT, with or without --save-embeds, or --embeds")
    paths = image_paths(output, count, force=force)
    first_seed = int.from_bytes(os.urandom(4)) if seed is None else check_seed(seed)
    arguments |= _prompt_and_size(prompt, embeds, size)
    opened_with = session_arguments(
        session_options, vae_tile=vae_tile, low_memory=low_memory, engine_dir=engine_dir
    )
    with (
        load_pipeline(package, backends_of(backends), **opened_with) as pipe,
        progress(None, "generate") as shown,
    ):
        shown.total = count * _choose_steps(pipe, arguments)
        if save_embeds:
            save_embeds_of(pipe, save_embeds, arguments, force=force)
        report = generate_images(
            pipe,
            paths,
            first_seed,
            arguments,
            previews=previews,
            preview_with=preview_with,
            on_step=shown.advance,
            on_image=(lambda line: None) if as_json else shown.print,
        )
    if as_json:
        print_json({"images": report})


def _prompt_and_size(
    prompt: str | None, embeds: Path | None, size: tuple[int, int] | None
) -> dict[str, Any]:
    """The pipeline's arguments for them."""
    from sdexport.commands.generate_images import embeds_arguments

    found: dict[str, Any] = embeds_arguments(embeds) if embeds else {"prompt": prompt}
    return found | ({"width": size[0], "height": size[1]} if size else {})


def _choose_steps(pipe: Any, arguments: dict[str, Any]) -> int:
    """Set the default number of steps where --steps was not given; returns the number."""
    if arguments["num_inference_steps"] is None:
        arguments["num_inference_steps"] = min(STEPS, pipe.defaults().num_inference_steps)
    return max(arguments["num_inference_steps"], 1)
