r"""Compel's prompt syntax: `(word)1.3`, `word++`, `("a", "b").and()`, `("a", "b").blend(1, 2)`.

Source: compel 2.5, the grammar in compel/prompt_parser.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.text.compel_grammar import Attention, CompelGrammar, Lora, Swap
from sdexport.runtime.text.prompt_weights import MAX_WEIGHT, Segment


@dataclass(frozen=True)
class CompelPart:
    """One part of a conjunction.

    Attributes:
      prompts: the segments of each prompt of a blend; of a plain part there is one.
      shares: of each prompt in the blend.
      weight: of the part.
    """

    prompts: tuple[tuple[Segment, ...], ...]
    shares: tuple[float, ...] = (1.0,)
    weight: float = 1.0


@dataclass(frozen=True)
class CompelPrompt:
    """The parts of a prompt, and what was read but has no effect, such as `.swap()`."""

    parts: tuple[CompelPart, ...]
    ignored: tuple[str, ...] = ()


def parse_compel(text: str) -> CompelPrompt:
    """Parse a prompt as Compel does. Weights are clipped to -1000..1000.

    Raises: InvalidArgumentError: an operator whose arguments do not fit, such as `.blend()` with
      fewer weights than prompts.
    Example:
        >>> from sdexport.runtime.text.compel_parser import parse_compel
        >>> (part,) = parse_compel("a (red)1.3 circle++").parts
        >>> [(segment.text, round(segment.weight, 2)) for segment in part.prompts[0]]
        [('a', 1.0), ('red', 1.3), ('circle', 1.21)]
    """
    text = re.sub(r",(\S)", r", \1", text).expandtabs()
    if not text.strip():
        return CompelPrompt((CompelPart(((Segment("", 1.0),),)),))
    parser = CompelGrammar(text)
    found = parser.operator(0, ("and", "add"))
    if found is not None:
        end, (prompts, weights) = found
        parts = _conjunction(text, prompts, weights)
        rest = text[end:].strip()
        return CompelPrompt(parts, (*_ignored(prompts), *([rest] if rest else [])))
    found = parser.operator(parser.loras(0), ("blend",))
    if found is None:
        _, words = parser.prompt(0)
        return CompelPrompt(_plain(words) or _plain([""]), tuple(_ignored([words])))
    end, (prompts, weights) = found
    if text[parser.loras(end) :].strip():
        raise InvalidArgumentError(f"prompt: text after .blend() in {shown(text)}; use .and()")
    return CompelPrompt((_blend(text, prompts, weights),), tuple(_ignored(prompts)))


def _conjunction(text: str, prompts: list[Any], options: list[str]) -> tuple[CompelPart, ...]:
    weights = _numbers(text, "and", prompts, options)
    parts = []
    for words, weight in zip(prompts, weights, strict=True):
        parts += [CompelPart(part.prompts, part.shares, weight) for part in _plain(words)]
    return tuple(parts) or _plain([""])


def _blend(text: str, prompts: list[Any], options: list[str]) -> CompelPart:
    normalised = options[-1:] != ["no_normalize"]
    shares = _numbers(text, "blend", prompts, options if normalised else options[:-1])
    if normalised:
        total = sum(shares)
        if not total or not math.isfinite(total):
            raise InvalidArgumentError(
                f"prompt: the weights of .blend() in {shown(text)} add up to 0"
            )
        shares = [share / total for share in shares]
    if ".swap()" in _ignored(prompts):
        raise InvalidArgumentError(f"prompt: .swap() cannot be part of .blend() in {shown(text)}")
    segments = tuple(part.prompts[0] for words in prompts for part in _plain(words))
    if len(segments) != len(shares):
        raise InvalidArgumentError(f"prompt: .blend() needs a text in each part of {shown(text)}")
    return CompelPart(segments, tuple(shares))


def _numbers(text: str, name: str, prompts: list[Any], options: list[str]) -> list[float]:
    """The weights of an operator, 1 for each prompt if there are none.

    Raises: InvalidArgumentError: another number of weights, or no numbers.
    """
    try:
        weights = [float(option) for option in options] or [1.0] * len(prompts)
    except ValueError:
        weights = []
    if len(weights) != len(prompts):
        raise InvalidArgumentError(
            f"prompt: .{name}() needs a number for each of {len(prompts)} prompts, got "
            f"{shown(', '.join(options))} in {shown(text)}"
        )
    return [_clipped(weight) for weight in weights]


def _plain(words: list[Any]) -> tuple[CompelPart, ...]:
    """A part of one prompt; none if there is no text at all."""
    segments: list[Segment] = []
    fused = False  # whether the last segment may be continued
    for word, weight, apart in _flat(words, 1.0):
        if fused and not apart and segments[-1].weight == weight:
            segments[-1] = Segment(f"{segments[-1].text} {word}", weight)
        else:
            segments.append(Segment(word, weight))
        fused = not apart
    return (CompelPart((tuple(segments),)),) if segments else ()


def _flat(words: list[Any], weight: float) -> list[tuple[str, float, bool]]:
    """Texts and their weights; and whether they stand apart, as the original of a swap does."""
    found: list[tuple[str, float, bool]] = []
    for word in words:
        if isinstance(word, str):
            found.append((_unescaped(word), _clipped(weight), False))
        elif isinstance(word, Attention):
            found += _flat(word.children, weight * word.weight)
        elif isinstance(word, Swap):
            inside = _plain(word.original)
            found += [
                (s.text, _clipped(s.weight * weight), True) for p in inside for s in p.prompts[0]
            ]
    return found


def _unescaped(text: str) -> str:
    """The text without escapes, also where these are escaped, as Compel unescapes repeatedly."""
    return re.sub(r'(?<!\\)\\+([()"])', r"\1", text)


def _ignored(prompts: list[Any]) -> list[str]:
    """LoRAs and swaps, which have no effect."""
    found: list[str] = []
    for word in prompts:
        if isinstance(word, list):
            found += _ignored(word)
        elif isinstance(word, Attention):
            found += _ignored(word.children)
        elif isinstance(word, Swap):
            found.append(".swap()")
        elif isinstance(word, Lora):
            found.append(word.text)
    return found


def _clipped(weight: float) -> float:
    return min(max(weight, -MAX_WEIGHT), MAX_WEIGHT)
