"""The images that one command generates: which file, which seed, which settings."""

from __future__ import annotations

import json
import os
import re
import string
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.commands.output_files import check_folder_of, check_overwrite, shown_path
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import one_line, plain
from sdexport.runtime.images.metadata import check_output
from sdexport.runtime.noise.torch_generator import check_seed
from sdexport.runtime.pipeline import call_argument_names
from sdexport.runtime.text.embeds_file import load_embeds

IN_FOLDER = "{index:04d}-{seed}.png"
"""Name of an image where the output is a folder."""
MAX_BYTES, MAX_LINES, MAX_LINE = 2**24, 100_000, 2**20
"""Bytes and lines of a file of prompts, and bytes of one line."""
_NOT_SETTINGS = {
    *("on_step", "guidance_function", "latents", "token_embeds", "num_images_per_prompt"),
    *("generator", "controlnets", "t2i_adapters", "ip_adapters"),
    *("callback_on_step_end", "callback_on_step_end_tensor_inputs"),
    *("output_type", "return_dict"),
    *("prompt_embeds", "negative_prompt_embeds"),
    *("pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
}
"""Arguments of the pipeline that a line of JSON cannot hold."""
_SHORT_NAMES = {
    "steps": "num_inference_steps",
    "size": "width and height",
    "negative": "negative_prompt",
    "cfg_scale": "guidance_scale",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "denoising_strength": "strength",
    "mask": "mask_image",
}
"""Names of the command line and of other programs, and what a line of JSON calls them."""


@dataclass(frozen=True)
class Job:
    """One image: the file to write, the seed, and further arguments of the pipeline.

    batch_index: which image of a call it is, if the arguments are those of a batch.
    """

    path: Path
    seed: int
    arguments: Mapping[str, Any]
    batch_index: int = 0


def read_rows(source: str) -> list[dict[str, Any]]:
    """The settings in each line of a file of prompts; blank lines are skipped.

    Args:
      source: a file in UTF-8, or - for standard input. A line that begins with { is a JSON object
        of the pipeline's arguments, and may name its "output"; every other line is a prompt.
    Raises: InvalidArgumentError: not UTF-8, too large, no prompt in it, or a line that is not JSON
      or has unknown keys; the message names the line. OSError: the file cannot be read.
    """
    name = "standard input" if source == "-" else source
    if source == "-":
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        with Path(source).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InvalidArgumentError(f"{name}: prompts of more than {MAX_BYTES >> 20} MB")
    if max(data.count(b"\n"), data.count(b"\r")) > MAX_LINES:
        raise InvalidArgumentError(f"{name}: more than {MAX_LINES:,} lines; split it")
    try:
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{name}: not a text in UTF-8: {one_line(error)}") from None
    if max(map(len, lines)) > MAX_LINE:
        raise InvalidArgumentError(f"{name}: a line of more than {MAX_LINE:,} characters")
    rows = [
        _row(line.strip(), f"{name}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not rows:
        raise InvalidArgumentError(f"{name}: no prompt in it")
    return rows


def _row(line: str, where: str) -> dict[str, Any]:
    if re.match(r'\[\s*\{\s*"', line):
        raise InvalidArgumentError(f"{where}: a list of JSON objects; give each its own line")
    if not line.startswith("{"):
        return {"prompt": line}
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{where}: not valid JSON: {one_line(error)}") from None
    known = set(call_argument_names()) - _NOT_SETTINGS | {"output"}
    for key in row.keys() - known:
        similar = [_SHORT_NAMES[key]] if key in _SHORT_NAMES else get_close_matches(key, known, 1)
        hint = f"did you mean {similar[0]}?" if similar else f"known are {', '.join(sorted(known))}"
        raise InvalidArgumentError(f"{where}: unknown setting '{key:.40}'; {hint}")
    if not isinstance(row.get("prompt"), str):
        raise InvalidArgumentError(f'{where}: expected a text as "prompt"')
    if not isinstance(row.get("output", ""), str):
        raise InvalidArgumentError(f'{where}: expected a file name as "output"')
    if row.get("seed") not in (None, -1):
        try:
            check_seed(row["seed"])
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{where}: {error}") from None
    return dict(row)


def jobs_of(
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    output: str,
    *,
    seed: int | None,
    count: int,
    embeds: Path | None = None,
    saved_as: Mapping[str, Any] | None = None,
    recorded: Mapping[str, Any] | None = None,
    force: bool = False,
) -> list[Job]:
    """The images to generate: `count` of each row, with consecutive seeds over all of them.

    Args:
      rows: settings of each prompt; a row's own count before `settings`.
      settings: for all rows, under the names of the pipeline's arguments.
      output: a file name, perhaps with fields to replace, or a folder.
      seed: of the first image; None or -1 takes a random one. A row may have its own.
      embeds: file of embeddings, instead of prompts.
      saved_as: arguments of save_image that the files are written with.
      recorded: further fields for the output's name.
    Raises: InvalidArgumentError: a field that there is not, the same name for two images, or a
      suffix that is not of an image format.
      OSError: a folder is missing or cannot be written, or a file exists, without `force`.
    """
    first = _seed_or_random(seed)
    given = embeds_arguments(embeds) if embeds else {}
    jobs: list[Job] = []
    for row in rows:
        own = {**settings, **given, **row}
        several = count > 1 or ("output" not in own and len(rows) > 1)
        template = own.pop("output", output)
        start = (first + len(jobs)) % 2**64
        if "seed" in own:
            start = _seed_or_random(own.pop("seed"))
        for number in range(count):
            counted = {"index": len(jobs), "seed": (start + number) % 2**64}
            fields = {**(recorded or {}), **own, **counted}
            path = _path(template, fields, several=several)
            jobs.append(Job(path, fields["seed"], own))
    for job in jobs:
        check_output(job.path, **saved_as or {})
    _check_paths([job.path for job in jobs], force=force)
    return jobs


def _seed_or_random(seed: Any) -> int:
    """The checked seed; a random one for None and -1."""
    if seed is None or (type(seed) is int and seed == -1):
        return int.from_bytes(os.urandom(4))
    return check_seed(seed)


def _path(template: str, fields: Mapping[str, Any], *, several: bool) -> Path:
    """The file of one image.

    Raises: InvalidArgumentError: no name, a field that there is not, or one that cannot be
      formatted.
    """
    if not template.strip():
        raise InvalidArgumentError("--output is empty; give a file or a folder")
    if template.endswith(("/", os.sep)) or Path(template).is_dir():
        template = str(Path(template) / IN_FOLDER)
    if "{" not in template and several:
        path = Path(template)
        return path.with_name(f"{path.stem}-{fields['index']}{path.suffix}")
    if "{" not in template:
        return Path(template)
    texts = {key: _safe(value) for key, value in fields.items()}
    try:
        name = _Names().vformat(template, (), texts)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, MemoryError) as error:
        known = ", ".join(key for key, value in texts.items() if not isinstance(value, Path))
        raise InvalidArgumentError(
            f"--output {plain(template, 300)}: {one_line(error)}; "
            f"in braces may stand one of {known}"
        ) from None
    return Path(name)


class _Names(string.Formatter):
    """Replaces {name} and {name:04d}; attributes and indices of a value are not reachable."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        if field_name not in kwargs:
            raise ValueError(f"no setting '{field_name:.40}'")
        return kwargs[field_name], field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if not re.fullmatch(r"0?\d{0,3}[a-z%]?|\.\d{1,2}[a-z%]?", format_spec):
            raise ValueError(f"unknown format '{format_spec:.20}'")
        return str(super().format_field(value, format_spec))


def _safe(value: Any) -> Any:
    """A setting for a file name: numbers as they are, texts without what names cannot hold."""
    if isinstance(value, int | float):
        return value
    text = re.sub(r"[^\w.,()+-]+", "-", str(value)).strip("-.")
    return text.encode()[:100].decode(errors="ignore") or "empty"


def _check_paths(paths: Sequence[Path], *, force: bool) -> None:
    """Check names and folders before the work.

    Raises: InvalidArgumentError: a name stands for two images.
      FileNotFoundError, PermissionError: the folder is missing or cannot be written.
      FileExistsError: a file exists, without `force`.
    """
    for folder in {path.parent for path in paths}:
        first = next(path for path in paths if path.parent == folder)
        check_folder_of(first)
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            raise InvalidArgumentError(
                f"--output gives the name {shown_path(path)} to several images; "
                "add {index} or {seed}"
            )
        seen.add(path)
        check_overwrite(path, force=force)


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
        "prompt_embeds": found.prompt_embeds,
        "negative_prompt_embeds": found.negative_prompt_embeds,
        "pooled_prompt_embeds": found.pooled_prompt_embeds,
        "negative_pooled_prompt_embeds": found.negative_pooled_prompt_embeds,
    }
