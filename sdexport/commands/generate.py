"""sdexport generate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from sdexport.commands.shared_options import (
    FILE,
    FOLDER,
    backend_option,
    engine_dir_option,
    json_option,
    low_memory_option,
    opening,
    parsed,
    print_json,
    progress_bar,
    session_option,
)

STEPS = 25
"""Enough for most schedulers; the library takes 50, as diffusers does."""


class Size(click.ParamType[tuple[int, int]]):
    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        width, _, height = str(value).lower().partition("x")
        if not (width.isdecimal() and height.isdecimal() and len(value) < 20):
            self.fail(f"{value!r} is no size; expected WIDTHxHEIGHT such as 512x768", param, ctx)
        return int(width), int(height)


class Interval(click.ParamType[tuple[float, float]]):
    name = "START:END"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        try:
            start, end = map(float, str(value).split(":"))
        except ValueError:
            self.fail(f"{value!r} is no interval; expected two numbers such as 0.1:0.8", param, ctx)
        return start, end


@click.command()
@click.argument("package", type=FOLDER)
@click.argument("prompt", required=False)
@click.option("-o", "--output", type=FILE, required=True, help="A .png.")
@click.option("--negative", "negative_prompt", help="What should not be seen.")
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
    help="Default 7.5; 5 for SDXL, 8.5 for latent consistency models. Turbo wants 0.",
)
@click.option(
    "--rescale", "guidance_rescale", type=float, default=0.0, help="0..1, against overexposure."
)
@click.option(
    "--guidance-interval",
    type=Interval(),
    default="0:1",
    show_default=True,
    help="Fractions of the steps that are guided; the others run no second pass.",
)
@click.option(
    "--cache-interval",
    type=Interval(),
    help="Between these fractions of the steps every second one takes the prediction of the one "
    "before: faster, and not exact.",
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
@click.option("--size", type=Size(), help="Default the image's, or the package's own.")
@click.option("--image", type=FILE, help="Begin from this picture.")
@click.option(
    "--strength",
    type=float,
    help="0..1, how much of the image is given up; default 0.8, for SDXL 0.3.",
)
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
@session_option
@engine_dir_option
@low_memory_option
@click.option("--force", is_flag=True, help="Overwrite existing pictures.")
@json_option
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
    """Paint PROMPT with PACKAGE."""
    from sdexport.commands.generate_images import (
        load_arguments,
        paint,
        picture_paths,
        save_embeds_of,
    )
    from sdexport.runtime.noise.torch_generator import check_seed
    from sdexport.runtime.pipeline import load_pipeline

    if (prompt is None) == (embeds is None) or (embeds and save_embeds):
        raise click.UsageError("give either PROMPT, which --save-embeds can keep, or --embeds")
    paths = picture_paths(output, count, force=force)
    first = int.from_bytes(os.urandom(4)) if seed is None else check_seed(seed)
    arguments |= {"width": size[0], "height": size[1]} if size else {}
    arguments |= load_arguments(embeds) if embeds else {"prompt": prompt}
    with (
        load_pipeline(
            package,
            parsed(backends),
            **opening(
                session_options, vae_tile=vae_tile, low_memory=low_memory, engine_dir=engine_dir
            ),
        ) as pipe,
        progress_bar(0, "generate") as bar,
    ):
        if arguments["num_inference_steps"] is None:
            arguments["num_inference_steps"] = min(STEPS, pipe.defaults().num_inference_steps)
        bar.reset(count * max(arguments["num_inference_steps"], 1))
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
        print_json({"images": report})
