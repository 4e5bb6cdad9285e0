"""The options of `sdexport generate`, in groups.

An option that is not given is None and does not reach the pipeline, whose defaults hold then. The
name of a parameter is that of the pipeline's argument.
"""

from __future__ import annotations

from collections.abc import Callable

import click

from sdexport.commands.scheduler_types import SCHEDULER_OPTIONS
from sdexport.commands.shared_options import FILE, FOLDER, with_options
from sdexport.commands.value_types import InpaintAreaType, IntervalType, SizeType

PROMPT_OPTIONS = (
    click.option(
        "--prompts",
        "prompts_file",
        type=click.Path(dir_okay=False, allow_dash=True),
        metavar="FILE",
        help="Generate images for each line of this file; - is standard input. A line is a prompt, "
        'or a JSON object with settings such as {"prompt": "...", "seed": 1}.',
    ),
    click.option(
        "--like",
        type=FILE,
        metavar="IMAGE",
        help="Use the settings that this image carries. Options that are given replace single "
        "ones; without any, the file that is written is the same.",
    ),
    click.option(
        "--negative", "--negative-prompt", "negative_prompt", help="What the image should not show."
    ),
    click.option(
        "--prompt-style",
        metavar="NAME",
        help="Whose prompt syntax is read: plain (default; brackets are text, and long prompts are "
        "cut), automatic1111, comfyui or compel.",
    ),
    click.option(
        "--weights",
        "prompt_weights",
        is_flag=True,
        default=None,
        help="The same as --prompt-style automatic1111.",
    ),
    click.option(
        "--clip-skip", type=int, help="Skip this many of the text encoder's last layers. Default 0."
    ),
    click.option(
        "--lora",
        "lora_texts",
        multiple=True,
        metavar="PATH[:SCALE]",
        help="Apply this LoRA, a file or a folder; the package must have been exported with "
        "--lora-inputs. Repeatable.",
    ),
    click.option(
        "--lora-dir",
        type=FOLDER,
        help="Apply the LoRAs of this folder that a prompt names, as <lora:name:0.8>.",
    ),
    click.option(
        "--controlnet",
        "controlnet_texts",
        multiple=True,
        metavar="PACKAGE:[MODE=]IMAGE[:SCALE[:START:END]]",
        help="Follow this control image with this ControlNet, which 'sdexport export-adapter' "
        "wrote; the model must have been exported with --controlnet-inputs. START and END are "
        "fractions of the steps. Repeatable.",
    ),
    click.option(
        "--guess-mode",
        is_flag=True,
        default=None,
        help="Follow the control images without a prompt.",
    ),
    click.option(
        "--t2i-adapter",
        "t2i_adapter_texts",
        multiple=True,
        metavar="PACKAGE:IMAGE[:SCALE]",
        help="Follow this control image with this T2I-Adapter, which 'sdexport export-adapter' "
        "wrote; the model must have been exported with --t2i-adapter-inputs. Repeatable.",
    ),
    click.option(
        "--ip-adapter",
        "ip_adapter_texts",
        multiple=True,
        metavar="PACKAGE:IMAGE[:SCALE]",
        help="Show this image to the model with this IP-Adapter, which 'sdexport export-adapter' "
        "wrote; the model must have been exported with --ip-adapter-inputs. Repeatable.",
    ),
    click.option("--embeds", type=FILE, help="Use the embeddings in this .npz file, not PROMPT."),
    click.option(
        "--save-embeds", type=FILE, help="Write the prompt's embeddings to this .npz file."
    ),
)
SAMPLING_OPTIONS = (
    click.option(
        "-s",
        "--steps",
        "num_inference_steps",
        type=int,
        help="Default 50, as in the library and in diffusers; 4 for latent consistency models.",
    ),
    click.option(
        "--guidance",
        "--guidance-scale",
        "guidance_scale",
        type=float,
        help="Default 7.5; 5 for SDXL, 8.5 for latent consistency models. Use 0 for Turbo models.",
    ),
    click.option(
        "--rescale",
        "guidance_rescale",
        type=float,
        help="0 to 1, against overexposure with high guidance. Default 0.",
    ),
    click.option(
        "--guidance-interval",
        type=IntervalType(),
        help="Part of the steps that use guidance, as fractions; the others take half the time. "
        "Default 0:1.",
    ),
    click.option(
        "--cache-interval",
        type=IntervalType(),
        help="Between these fractions of the steps, every second step reuses the UNet's last "
        "prediction: faster, but not exact.",
    ),
    click.option(
        "-S",
        "--seed",
        type=int,
        help="The same seed gives the same image. Default -1: a random one, which is printed.",
    ),
    click.option(
        "--noise",
        "noise_device",
        type=click.Choice(["cpu", "cuda"]),
        help="Draw the noise as PyTorch does on this device. Default cpu.",
    ),
    *SCHEDULER_OPTIONS,
    click.option("--eta", type=float, help="0 to 1, for ddim and tcd. Default 0."),
)
IMAGE_OPTIONS = (
    click.option(
        "--size", type=SizeType(), help="In pixels; default that of --image, or the package's own."
    ),
    click.option("-W", "--width", type=int, help="In pixels, instead of --size."),
    click.option("-H", "--height", type=int, help="In pixels, instead of --size."),
    click.option("--image", type=FILE, help="Start from this image."),
    click.option(
        "--strength",
        type=float,
        help="0 to 1, how much --image is changed; default 0.8, for SDXL 0.3.",
    ),
    click.option(
        "--mask", "mask_image", type=FILE, help="Change --image only where this image is bright."
    ),
    click.option(
        "--mask-blur", type=float, help="Blur --mask with this radius in pixels. Default 0."
    ),
    click.option(
        "--mask-invert", is_flag=True, default=None, help="Change --image where --mask is dark."
    ),
    click.option(
        "--paste-back",
        is_flag=True,
        default=None,
        help="Paste --image back where --mask is dark; the result has its size.",
    ),
    click.option(
        "--inpaint-area",
        "padding_mask_crop",
        type=InpaintAreaType(),
        help="masked: generate only what --mask covers and PADDING pixels around it (32), in the "
        "full size, and paste it into --image. Default whole.",
    ),
    click.option(
        "--resize",
        "resize_mode",
        type=click.Choice(["stretch", "crop", "fill"], case_sensitive=False),
        help="How --image and --mask are brought to the size. Default stretch.",
    ),
)
OUTPUT_OPTIONS = (
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=str),
        required=True,
        help="The file to write: .png, .jpg or .webp. {index}, {seed}, {prompt} and other settings "
        "in the name are replaced, as in 'out/{index:03d}-{seed}.png'. A folder stands for "
        "{index:04d}-{seed}.png in it.",
    ),
    click.option(
        "-n",
        "--count",
        type=click.IntRange(1, 100_000),
        default=1,
        show_default=True,
        help="Number of images of each prompt, with consecutive seeds.",
    ),
    click.option(
        "--previews",
        type=FOLDER,
        help="Write an image of each step and an animation to this folder.",
    ),
    click.option(
        "--preview-with",
        type=click.Choice(["vae", "linear"]),
        default="vae",
        show_default=True,
        help="How previews are decoded; linear is fast and coarse.",
    ),
    click.option(
        "--quality", type=click.IntRange(1, 100), help="Of .jpg and .webp files. Default 90."
    ),
    click.option("--lossless", is_flag=True, default=None, help="Keep every pixel in .webp files."),
    click.option(
        "--no-mark",
        "mark",
        is_flag=True,
        flag_value=False,
        default=None,
        help="Do not say in the files that the images were made by a model.",
    ),
    click.option(
        "--safety",
        is_flag=True,
        default=None,
        help="Replace images that the package's safety checker flags by black ones. Default off.",
    ),
    click.option(
        "--tile", "vae_tile", type=int, help="Let the VAE work in tiles of this many pixels."
    ),
)


def generate_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add all of these options to a command."""
    groups = (OUTPUT_OPTIONS, PROMPT_OPTIONS, SAMPLING_OPTIONS, IMAGE_OPTIONS)
    for group in reversed(groups):
        command = with_options(command, group)
    return command
