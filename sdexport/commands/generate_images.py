"""Generating images for the command line: one after another, with previews and embeddings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.denoise import DenoiseStep
from sdexport.runtime.images.metadata import save_image
from sdexport.runtime.images.preview import PreviewWriter
from sdexport.runtime.pipeline import Pipeline
from sdexport.runtime.text.embeds_file import load_embeds, save_embeds


def image_paths(output: Path, count: int, *, force: bool) -> list[Path]:
    """The files to write: OUT.png, or OUT-0.png, OUT-1.png and so on for several images.

    Raises: InvalidArgumentError: the name does not end in .png. FileNotFoundError,
      PermissionError: the folder is missing or cannot be written. FileExistsError: a file exists,
      without `force`.
    """
    if output.suffix.lower() != ".png":
        raise InvalidArgumentError(
            f"{output}: images are written as PNG; choose a name that ends in .png"
        )
    folder = output.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{output}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{output}: the folder {folder} cannot be written")
    paths = [output]
    if count > 1:
        paths = [output.with_stem(f"{output.stem}-{number}") for number in range(count)]
    for path in paths:
        check_overwrite(path, force=force)
    return paths


def check_overwrite(path: Path, *, force: bool) -> None:
    """Raises: FileExistsError: the file exists, and --force was not given."""
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists; use --force to overwrite it")


def generate_images(
    pipe: Pipeline,
    paths: Sequence[Path],
    first_seed: int,
    arguments: Mapping[str, Any],
    *,
    previews: Path | None = None,
    preview_with: str = "vae",
    on_step: Callable[[], object] = lambda: None,
    on_image: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:
    """Generate one image for each path, with consecutive seeds.

    Args:
      arguments: of the pipeline, the same for every image.
      previews: folder for an image of every step; see sdexport.runtime.images.preview.
      on_image: called with a line for the user when an image has been written.
    Returns: for each image its path, settings, and seconds of each stage.
    """
    report = []
    for number, path in enumerate(paths):
        writer = None
        if previews is not None:
            prefix = f"{path.stem}-" if len(paths) > 1 else ""
            writer = PreviewWriter(pipe, previews, method=preview_with, prefix=prefix)

        def after_step(step: DenoiseStep, writer: PreviewWriter | None = writer) -> None:
            on_step()
            if writer is not None:
                writer(step)

        result = pipe(seed=(first_seed + number) % 2**64, on_step=after_step, **arguments)
        save_image(result.images[0], path)
        parameters = result.parameters[0]
        entry = {"path": str(path)} | vars(parameters) | {"seconds": dict(result.seconds)}
        if writer is not None:
            entry["animation"] = str(writer.finish())
        report.append(entry)
        on_image(f"{path} (seed {parameters.seed})")
    return report


def embeds_arguments(path: Path) -> dict[str, np.ndarray | None]:
    """The pipeline's arguments for embeddings in a file.

    Raises: InvalidArgumentError: it holds embeddings of several prompts. FileNotFoundError and
      what else load_embeds raises.
    """
    found = load_embeds(path)
    if len(found.prompt_embeds) != 1:
        raise InvalidArgumentError(
            f"{path}: expected embeddings of one prompt, got {len(found.prompt_embeds)}"
        )
    return {
        "prompt": None,
        "prompt_embeds": found.prompt_embeds,
        "negative_prompt_embeds": found.negative_prompt_embeds,
        "pooled_prompt_embeds": found.pooled_prompt_embeds,
        "negative_pooled_prompt_embeds": found.negative_pooled_prompt_embeds,
    }


def save_embeds_of(
    pipe: Pipeline, path: Path, arguments: Mapping[str, Any], *, force: bool
) -> None:
    """Write the embeddings of the prompt and the negative prompt to a .npz file.

    Args:
      arguments: of the pipeline.
    Raises: FileExistsError: the file exists, without `force`. What save_embeds raises.
    """
    check_overwrite(path, force=force)
    how = {key: arguments[key] for key in ("prompt_weights", "clip_skip")}
    texts = {key: arguments[key] or "" for key in ("prompt", "negative_prompt")}
    both = pipe.text_encoders.encode([texts["negative_prompt"], texts["prompt"]], 1, **how)
    pooled: dict[str, Any] = {}
    if both.pooled is not None:
        pooled = {
            "pooled_prompt_embeds": both.pooled[1:],
            "negative_pooled_prompt_embeds": both.pooled[:1],
        }
    meta: dict[str, Any] = {"model": pipe.package.folder.resolve().name, **texts, **how}
    save_embeds(path, both.embeds[1:], both.embeds[:1], **pooled, **meta)
