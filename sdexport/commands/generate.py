"""sdexport generate."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sdexport.commands.generate_options import generate_options
from sdexport.commands.memory_check import adapters_of, check_images, ignore_memory_option
from sdexport.commands.one_heap import use_one_heap
from sdexport.commands.progress import progress
from sdexport.commands.shared_options import (
    FOLDER,
    backend_options,
    backends_of,
    json_option,
    print_json,
    session_arguments,
    trust_options,
    verify_hashes_option,
    without_none,
)
from sdexport.commands.verbosity import verbosity_options

_log = logging.getLogger(__name__)


@click.command()
@click.argument("package", type=FOLDER)
@click.argument("prompt", required=False)
@generate_options
@backend_options
@trust_options
@verify_hashes_option
@ignore_memory_option
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@json_option
@verbosity_options
def generate(
    package: Path,
    prompt: str | None,
    prompts_file: str | None,
    like: Path | None,
    lora_texts: tuple[str, ...],
    lora_dir: Path | None,
    controlnet_texts: tuple[str, ...],
    guess_mode: bool | None,
    t2i_adapter_texts: tuple[str, ...],
    ip_adapter_texts: tuple[str, ...],
    output: str,
    seed: int | None,
    size: tuple[int, int] | None,
    embeds: Path | None,
    save_embeds: Path | None,
    count: int,
    previews: Path | None,
    preview_with: str,
    quality: int | None,
    lossless: bool | None,
    mark: bool | None,
    vae_tile: int | None,
    backends: tuple[str, ...],
    session_options: tuple[tuple[str, Any], ...],
    engine_dir: Path | None,
    low_memory: bool,
    trusted_key: str | None,
    trust: str,
    verify_hashes: bool,
    ignore_memory: bool,
    force: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Generate images from a prompt.

    PROMPT is the text; - reads prompts from standard input, and @FILE from a file, as --prompts
    does. The settings of each image are written to its file, as AUTOMATIC1111 does.
    """
    if any("openvino" in backend for backend in backends):
        use_one_heap()
    from sdexport.commands.generate_controlnets import (
        controlnets_of,
        ip_adapters_of,
        t2i_adapters_of,
    )
    from sdexport.commands.generate_images import (
        check_previews,
        generate_images,
        save_embeds_of,
    )
    from sdexport.commands.generate_jobs import jobs_of, read_rows
    from sdexport.commands.generate_like import Reference
    from sdexport.commands.generate_loras import loras_of, with_tags
    from sdexport.runtime.pipeline_loading import load_pipeline
    from sdexport.runtime.store_graphs import defer, store_later

    prompt, prompts_file = _prompt_source(prompt, prompts_file)
    _check_sources(prompt, prompts_file, embeds, save_embeds, like)
    rows = [without_none(prompt=prompt)] if prompts_file is None else read_rows(prompts_file)
    loras = loras_of(lora_texts)
    controlnets = controlnets_of(controlnet_texts, guess_mode=guess_mode)
    adapters = {
        "loras": loras or None,
        "controlnets": controlnets or None,
        "t2i_adapters": t2i_adapters_of(t2i_adapter_texts) or None,
        "ip_adapters": ip_adapters_of(ip_adapter_texts) or None,
    }
    settings = without_none(**settings | _sides(settings, size) | adapters)
    saved_as = without_none(quality=quality, lossless=lossless, mark=mark)
    reference = None if like is None else Reference.read(like, seed=seed)
    if lora_dir is not None:
        rows = with_tags(rows, lora_dir, loras, reference.parameters.prompt if reference else "")
    if reference:
        saved_as = reference.saved_as(output, saved_as)
    jobs = jobs_of(
        rows,
        settings,
        output,
        seed=reference.parameters.seed if reference and seed is None else seed,
        count=count,
        embeds=embeds,
        saved_as=saved_as,
        recorded=reference.fields if reference else None,
        force=force,
    )
    checked: dict[str, Any] = {
        "trusted_key": trusted_key,
        "trust": trust,
        "verify_hashes": verify_hashes,
    }
    opened_with = session_arguments(
        session_options, vae_tile=vae_tile, low_memory=low_memory, engine_dir=engine_dir
    )
    if backends or not reference:
        opened_with["backend"] = backends_of(backends)
    if reference:
        jobs = reference.jobs(jobs, lora_dir)
        opened_with = reference.pipeline_arguments(opened_with)
    opened_with |= {"expected_images": len(jobs), "lora_dir": lora_dir}
    with (
        load_pipeline(package, **checked, **opened_with) as pipe,
        progress(None, "generate") as shown,
    ):
        used = adapters_of(jobs)
        defer(pipe.package, *used.values())
        if reference:
            reference.warn_of_differences(pipe.settings, jobs)
        check_images(pipe, jobs, used, opened_with, ignore=ignore_memory)
        if previews:
            check_previews(previews, jobs, force=force)
            if any(job.arguments.get("safety") for job in jobs):
                _log.warning("--previews: --safety does not check the previews")
        if save_embeds:
            save_embeds_of(pipe, save_embeds, jobs[0].arguments, force=force)
        report = generate_images(
            pipe,
            jobs,
            saved_as=saved_as,
            previews=previews,
            preview_with=preview_with,
            shown=shown,
            on_image=(lambda line: None) if as_json else shown.print,
        )
        if reference:
            reference.warn_of_engines(report)
    store_later(pipe.package, *used.values())
    if as_json:
        print_json({"images": report})


def _prompt_source(prompt: str | None, prompts_file: str | None) -> tuple[str | None, str | None]:
    """The prompt, or the file of prompts: PROMPT may be - or @FILE."""
    if prompts_file is None and prompt == "-":
        return None, "-"
    if prompts_file is None and prompt and prompt[0] == "@" and Path(prompt[1:]).is_file():
        return None, prompt[1:]
    if prompts_file is None and prompt and re.fullmatch(r"@\S+", prompt):
        _log.warning("there is no file %s, so that %s is read as a prompt", prompt[1:], prompt)
    return prompt, prompts_file


def _check_sources(
    prompt: str | None,
    prompts_file: str | None,
    embeds: Path | None,
    save_embeds: Path | None,
    like: Path | None,
) -> None:
    """Raises: click.UsageError: no prompt, or several sources of one."""
    sources = 3 - [prompt, prompts_file, embeds].count(None)
    if sources > 1 or not (sources or like):
        raise click.UsageError("give either PROMPT, --prompts or --embeds, or an image as --like")
    if save_embeds and prompt is None:
        raise click.UsageError("--save-embeds needs PROMPT")


def _sides(settings: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, int]:
    """Width and height of --size, if it was given.

    Raises: click.UsageError: another option says them too.
    """
    if size is None:
        return {}
    if any(settings[side] is not None for side in ("width", "height")):
        raise click.UsageError("--size and --width or --height exclude each other")
    return {"width": size[0], "height": size[1]}
