"""Painting for the command line: a picture after another, with previews and embeddings in files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.runtime.denoise import DenoiseStep
from sdexport.runtime.images.metadata import save_image
from sdexport.runtime.images.preview import PreviewWriter
from sdexport.runtime.pipeline import Pipeline
from sdexport.runtime.text.embeds_file import load_embeds, save_embeds


def picture_paths(output: Path, count: int, *, force: bool) -> list[Path]:
    """OUT.png, or OUT-0.png and so on; checked before anything is painted.

    Raises: ValueError: no .png. FileNotFoundError, PermissionError, FileExistsError.
    """
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


def paint(
    pipe: Pipeline,
    paths: Sequence[Path],
    first_seed: int,
    arguments: Mapping[str, Any],
    *,
    previews: Path | None = None,
    preview_with: str = "vae",
    on_step: Callable[[], object] = lambda: None,
    on_picture: Callable[[Path, int | None], object] = lambda path, seed: None,
) -> list[dict[str, Any]]:
    """Paint one picture for each path, with seeds that follow, and tell of each.

    Args:
      arguments: of the pipeline.
      previews: folder for the pictures of every step; see sdexport.runtime.images.preview.
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
        on_picture(path, parameters.seed)
    return report


def load_arguments(path: Path) -> dict[str, np.ndarray | None]:
    """The pipeline's embedding arguments from a file.

    Raises: ValueError: embeddings of several prompts, or none; see text.embeds_file.
    """
    found = load_embeds(path)
    if len(found.prompt_embeds) != 1:
        raise ValueError(
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
    """Write the embeddings of the prompt and negative prompt in the pipeline's arguments.

    Raises: FileExistsError: without `force`. ValueError, OSError: see text.embeds_file.
    """
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists; give --force to overwrite it")
    how = {key: arguments[key] for key in ("prompt_weights", "clip_skip")}
    texts = {key: arguments[key] or "" for key in ("prompt", "negative_prompt")}
    both = pipe.text_encoders.encode([texts["negative_prompt"], texts["prompt"]], 1, **how)
    pooled: dict[str, Any] = {}
    if both.pooled is not None:
        pooled = {
            "pooled_prompt_embeds": both.pooled[1:],
            "negative_pooled_prompt_embeds": both.pooled[:1],
        }
    notes: dict[str, Any] = {"model": pipe.package.folder.resolve().name, **texts, **how}
    save_embeds(path, both.embeds[1:], both.embeds[:1], **pooled, **notes)
