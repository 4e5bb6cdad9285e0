"""Jobs that run as one batch: which ones may, their one call, and the result of each.

A prompt, a negative prompt and a seed may differ from image to image. With everything else equal,
an image of a batch is the image of a call of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from sdexport.runtime.adapters.lora_tags import TAG
from sdexport.runtime.expected_calls import is_short
from sdexport.runtime.images.metadata import to_image
from sdexport.runtime.images.parameters import Parameters
from sdexport.runtime.result import Result
from sdexport.runtime.text.prompt_styles import PLAIN, style_name
from sdexport.runtime.text.tokenizer import ClipTokenizer
from sdexport.server.image_request import ImageRequest
from sdexport.server.jobs import Job
from sdexport.server.request_checks import texts_of

_OF_IMAGES = ("prompt", "negative_prompt", "seed", "num_images_per_prompt")
_ALONE = (
    *("image", "mask_image", "controlnets", "t2i_adapters", "ip_adapters"),
    *("prompt_2", "negative_prompt_2", "token_embeds"),
)
"""Arguments whose calls run alone."""
_SYNTAX = ("[", "]", "{", "BREAK", "AND", "embedding:", '").', ".and(", ".blend(")
"""What may give a prompt another length, or parts, in a style that is not plain."""


def batch_key(
    request: ImageRequest,
    count: int,
    tokenizers: Collection[ClipTokenizer] = (),
    *,
    loras_may_add_words: bool = True,
) -> Hashable | None:
    """What requests that run together have in common; None for one that runs alone.

    Args:
      tokenizers: of the model if it is open. In a style that is not plain, texts of several rows of
        tokens run alone, as shorter ones in a batch would get empty rows; so do all texts if the
        tokenizers are not known, or with LoRAs that may add words to them.
      loras_may_add_words: whether the LoRAs of the request, if it has some, may do that.
    """
    arguments = request.arguments
    if any(arguments.get(name) is not None for name in _ALONE):
        return None
    if count > 1 and not isinstance(arguments["seed"], list):
        return None  # one generator draws the noise of all its images
    prompts = texts_of(arguments, "prompt")
    texts = [*(TAG.sub("", each) for each in prompts), *texts_of(arguments, "negative_prompt")]
    has_loras = bool(arguments.get("loras")) or any(map(TAG.search, prompts))
    style = style_name(
        arguments.get("prompt_style"), weights=bool(arguments.get("prompt_weights", False))
    )
    if style != PLAIN and (
        (has_loras and loras_may_add_words)
        or not tokenizers
        or not all(_has_one_row(text, tokenizers) for text in texts)
    ):
        return None
    shared = {name: value for name, value in arguments.items() if name not in _OF_IMAGES}
    tags = {tuple(map(_lora_of, TAG.finditer(text))) for text in prompts}
    if len(tags) > 1:
        return None
    has_negative = arguments.get("negative_prompt") is not None
    text = json.dumps(shared, sort_keys=True, default=str)
    return request.model, text, has_negative, *tags


def _lora_of(match: re.Match[str]) -> tuple[str, float | str]:
    """The name and the scale of a LoRA that a prompt names."""
    scale = (match["scale"] or "1").strip()
    try:
        return match["name"].strip(), float(scale)
    except ValueError:  # which fails the job
        return match[0], scale


def _has_one_row(text: str, tokenizers: Collection[ClipTokenizer]) -> bool:
    """Whether a text has one row of tokens in every style, wherever that style divides it."""
    if not is_short(text) or TAG.search(text) or any(mark in text for mark in _SYNTAX):
        return False
    # a mark may be part of a token, or one to four tokens of its own
    marks = sum(1 if c.isascii() else 4 for c in text if not (c.isalnum() or c.isspace()))
    return all(
        len(tokenizer.encode(tokenizer.expand(text))) + marks <= tokenizer.max_length - 2
        for tokenizer in tokenizers
    )


@dataclass(frozen=True)
class ImagePart:
    """The images of one job, and what the settings in them say that differs from the batch's."""

    images: list[Image.Image]
    parameters: list[Parameters]
    flagged: list[bool] | None


def merged_arguments(jobs: Sequence[Job]) -> dict[str, Any]:
    """The arguments of the one call that generates the images of all jobs, in their order."""
    if len(jobs) == 1:
        return dict(jobs[0].request.arguments)
    merged = {
        name: value for name, value in jobs[0].request.arguments.items() if name not in _OF_IMAGES
    }
    prompts: list[str] = []
    negatives: list[str] = []
    seeds: list[int] = []
    for job in jobs:
        arguments = job.request.arguments
        prompts += _of_each(arguments, "prompt", job.count)
        negatives += _of_each(arguments, "negative_prompt", job.count)
        seed = arguments["seed"]
        seeds += seed if isinstance(seed, list) else [seed]
    merged |= {"prompt": prompts, "seed": seeds}
    return merged | ({"negative_prompt": negatives} if negatives else {})


def part_of(result: Result, jobs: Sequence[Job], job: Job) -> ImagePart:
    """The images of one job of a batch, with the settings of a call of its own."""
    first = sum(other.count for other in jobs[: jobs.index(job)])
    places = range(first, first + job.count)
    images, parameters = list(result.images), list(result.parameters)
    detected = result.nsfw_content_detected
    flagged = None if detected is None else [detected[place] for place in places]
    if len(jobs) == 1:
        return ImagePart(images, parameters, flagged)
    own = [_alone(parameters[place], index, job) for index, place in enumerate(places)]
    found = [
        to_image(np.asarray(images[place]), each) for place, each in zip(places, own, strict=True)
    ]
    return ImagePart(found, own, flagged)


def _alone(parameters: Parameters, index: int, job: Job) -> Parameters:
    """The settings of an image as a call of its job alone records them."""
    arguments, count = job.request.arguments, job.count
    seed = arguments["seed"]
    prompts = _without_tags(_of_each(arguments, "prompt", count), parameters)
    negatives = _of_each(arguments, "negative_prompt", count)
    return replace(
        parameters,
        batch_size=count,
        batch_index=index,
        prompts=_if_different(prompts),
        negative_prompts=_if_different(negatives),
        seeds=tuple(seed) if isinstance(seed, list) and count > 1 else None,
    )


def _without_tags(prompts: list[str], parameters: Parameters) -> list[str]:
    """The prompts as they are recorded: without the names of LoRAs, if they were applied."""
    return [TAG.sub("", each) for each in prompts] if parameters.loras else prompts


def _of_each(arguments: Mapping[str, Any], name: str, count: int) -> list[str]:
    """The text of each image; none if the argument is not there."""
    texts = list(texts_of(arguments, name))
    return [text for text in texts for _ in range(count // len(texts))] if texts else []


def _if_different(texts: Sequence[str]) -> tuple[str, ...] | None:
    return tuple(texts) if len(set(texts)) > 1 else None
