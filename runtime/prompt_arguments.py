"""The texts among the arguments of a pipeline call: one of each kind for every image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import checks
from sdexport.runtime.text.prompt_embeds import Embeds, Text


def prompts(
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    prompt_embeds: Embeds | None,
    negative_prompt_embeds: np.ndarray | None,
    num_images_per_prompt: int,
) -> tuple[list[str], list[str]]:
    """Prompt and negative prompt of each image; "" where embeddings replace them.

    Raises: InvalidArgumentError: none or both of prompt and embeddings; numbers that do not match.
    """
    checks.integer("num_images_per_prompt", num_images_per_prompt, 1, 100_000)
    if (prompt is None) == (prompt_embeds is None):
        raise InvalidArgumentError("expected either a prompt or prompt_embeds")
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise InvalidArgumentError("expected either a negative_prompt or negative_prompt_embeds")
    if prompt is not None:
        prompts = checks.strings("prompt", prompt)
    elif callable(prompt_embeds):
        prompts = [""]
    else:
        prompts = [""] * len(checks.float_array("prompt_embeds", prompt_embeds, (None, None, None)))
    if not prompts:
        raise InvalidArgumentError("expected at least one prompt")
    negatives = checks.strings(
        "negative_prompt", "" if negative_prompt is None else negative_prompt
    )
    if negative_prompt is None or isinstance(negative_prompt, str):
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        raise InvalidArgumentError(
            f"got {len(prompts)} prompts and {len(negatives)} negative prompts"
        )
    repeat = range(num_images_per_prompt)
    return [p for p in prompts for _ in repeat], [n for n in negatives for _ in repeat]


def both_texts(
    name: str, first: list[str], second: str | Sequence[str] | None, repeats: int, *, encoders: int
) -> list[Text]:
    """The text of each image, or its texts for both encoders.

    Args:
      name: of the argument for the second encoder. repeats: images for each prompt.
      encoders: how many the package has.
    Raises: InvalidArgumentError: there is one encoder only; numbers that do not match.
    """
    if second is None or (isinstance(second, str) and not second):  # "" too, as in diffusers
        return list(first)
    if encoders < 2:
        raise InvalidArgumentError(f"{name} needs a package with two text encoders, as SDXL")
    return list(zip(first, _repeated(name, second, len(first), repeats), strict=True))


def check_texts(arguments: Mapping[str, Any]) -> None:
    """Raises: InvalidArgumentError: arguments for texts that there are not."""
    if arguments["token_embeds"] is not None and arguments["prompt_embeds"] is not None:
        raise InvalidArgumentError(
            "token_embeds change a prompt, not prompt_embeds; give one of them"
        )
    for name in ("prompt", "negative_prompt"):
        second = f"{name}_2"
        text = arguments[second]
        is_given = text is not None and not (isinstance(text, str) and not text)
        if arguments[name] is None and is_given:
            raise InvalidArgumentError(f"{second} needs a {name}")


def _repeated(name: str, texts: str | Sequence[str], count: int, repeats: int) -> list[str]:
    """The text of each image: one for all of `count` images, or one for each prompt.

    Raises: InvalidArgumentError: numbers that do not match.
    """
    found = checks.strings(name, texts)
    if isinstance(texts, str):
        return found * count
    if len(found) * repeats != count:
        raise InvalidArgumentError(f"got {count // repeats} prompts and {len(found)} in {name}")
    return [text for text in found for _ in range(repeats)]
