"""Generating images for the command line: one after another, with previews and embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdexport.commands.generate_jobs import Job
from sdexport.commands.output_files import check_overwrite
from sdexport.commands.progress import Progress
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.denoise import DenoiseStep
from sdexport.runtime.images.metadata import save_image
from sdexport.runtime.images.preview import PreviewWriter
from sdexport.runtime.pipeline import Pipeline
from sdexport.runtime.text.embeds_file import save_embeds
from sdexport.runtime.text.prompt_conditions import joined
from sdexport.runtime.text.prompt_styles import read_tags, style_name
from sdexport.runtime.text.prompt_texts import require_constant


def generate_images(
    pipe: Pipeline,
    jobs: Sequence[Job],
    *,
    saved_as: Mapping[str, Any],
    previews: Path | None = None,
    preview_with: str = "vae",
    shown: Progress,
    on_image: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:
    """Generate the image of each job, one after another.

    Args:
      saved_as: arguments of save_image.
      previews: folder for an image of every step; see sdexport.runtime.images.preview.
      shown: counts the steps of all images.
      on_image: called with a line for the user when an image has been written.
    Returns: for each image its path, settings, and seconds of each stage.
    """
    report = []
    for number, job in enumerate(jobs):
        writer = None
        if previews is not None:
            prefix = _prefix(job, jobs)
            mark = saved_as.get("mark", True)
            writer = PreviewWriter(pipe, previews, method=preview_with, prefix=prefix, mark=mark)
        on_step = _StepCounter(shown, len(jobs), writer)
        try:
            results = pipe(**{"seed": job.seed, **job.arguments}, on_step=on_step)
        except InvalidArgumentError as error:
            if len(jobs) == 1:
                raise
            raise InvalidArgumentError(
                f"image {number + 1} of {len(jobs)}, {job.path}: {error}"
            ) from error
        result = results.only(job.batch_index)
        save_image(result.images[0], job.path, **saved_as)
        parameters = result.parameters[0]
        entry = {"path": str(job.path)} | parameters.to_dict() | {"seconds": dict(result.seconds)}
        flagged = ""
        if result.nsfw_content_detected is not None:
            (entry["nsfw_content_detected"],) = result.nsfw_content_detected
            flagged = ", black: flagged by the safety checker" * entry["nsfw_content_detected"]
        if writer is not None:
            entry["animation"] = str(writer.finish())
        report.append(entry)
        nth = f"{number + 1} of {len(jobs)}: " if len(jobs) > 1 else ""
        on_image(f"{nth}{job.path} (seed {job.seed}{flagged})")
    return report


def check_previews(folder: Path, jobs: Sequence[Job], *, force: bool) -> None:
    """Raises: FileExistsError: previews of these images are there, without `force`."""
    for job in jobs:
        for name in ("step-000.png", "steps.webp"):
            check_overwrite(folder / f"{_prefix(job, jobs)}{name}", force=force)


def _prefix(job: Job, jobs: Sequence[Job]) -> str:
    """The start of the names of an image's previews."""
    return f"{job.path.stem}-" if len(jobs) > 1 else ""


class _StepCounter:
    """Counts the steps of an image on a progress bar, and writes previews."""

    def __init__(self, shown: Progress, images: int, writer: PreviewWriter | None) -> None:
        self._shown, self._images, self._writer = shown, images, writer

    def __call__(self, step: DenoiseStep) -> None:
        if self._shown.total is None:  # an input image leaves out the first steps
            self._shown.total = (step.count - step.index) * self._images
        self._shown.advance()
        if self._writer is not None:
            self._writer(step)


def save_embeds_of(
    pipe: Pipeline, path: Path, arguments: Mapping[str, Any], *, force: bool
) -> None:
    """Write the embeddings of the prompt and the negative prompt to a .npz file.

    Args:
      arguments: of the pipeline.
    Raises: FileExistsError: the file exists, without `force`. What save_embeds raises.
    """
    check_overwrite(path, force=force)
    names = ("prompt_style", "prompt_weights", "clip_skip")
    how = {key: arguments[key] for key in names if key in arguments}
    texts = {key: arguments.get(key, "") for key in ("prompt", "negative_prompt")}
    style = style_name(how.get("prompt_style"), weights=how.get("prompt_weights", False))
    require_constant([texts["prompt"]], [texts["negative_prompt"]], style, "--save-embeds")
    both = pipe.text_encoders_with(arguments.get("loras")).encode(
        read_tags([texts["negative_prompt"], texts["prompt"]], style), 1, **how
    )
    embeds = joined(both, style)
    pooled: dict[str, Any] = {}
    if both.pooled is not None:
        pooled = {
            "pooled_prompt_embeds": both.pooled[1:],
            "negative_pooled_prompt_embeds": both.pooled[:1],
        }
    meta: dict[str, Any] = {"model": pipe.package.folder.resolve().name, **texts, **how}
    save_embeds(path, embeds[1:], embeds[:1], **pooled, **meta)
