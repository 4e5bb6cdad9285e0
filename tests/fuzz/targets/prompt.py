"""Prompts, in the syntax of each program."""

from __future__ import annotations

from pathlib import Path

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.text.comfyui_weights import parse_comfyui, tokenize_comfyui
from sdexport.runtime.text.compel_parser import parse_compel
from sdexport.runtime.text.prompt_editing import EditedPrompt
from sdexport.runtime.text.prompt_styles import (
    STYLES,
    read_tags,
    style_name,
    warn_about_unread_syntax,
)
from sdexport.runtime.text.prompt_texts import edited, parts_of, require_constant, warn_about_parts
from sdexport.runtime.text.prompt_weights import parse_weights, tokenize_weighted
from tests.fuzz import mutators
from tests.fuzz.harness import Target
from tests.helpers.text import tokenizer


def prepare(folder: Path) -> None:
    tokenizer()


def run(folder: Path, data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    errors = []
    for style in STYLES:
        (prompt,) = read_tags([text], style)
        warn_about_unread_syntax([text], style)
        parts = parts_of(prompt, style)
        warn_about_parts([prompt], [prompt], [parts])
        for part in parts:
            assert part.text.last_change(4) >= 1
        try:
            require_constant([prompt], [prompt], style, "blending")
        except InvalidArgumentError as error:
            errors.append(error)
    assert EditedPrompt(text, literal=True).at(1, 4) == text
    edited(text, STYLES[1]).at(3, 4)
    parse_weights(text)
    tokenize_weighted(tokenizer(), [text])
    parse_comfyui(text)
    tokenize_comfyui(tokenizer(), [text])
    for read in (parse_compel, style_name):
        try:
            read(text)
        except InvalidArgumentError as error:
            errors.append(error)
    if errors:
        raise errors[0]


WORDS = (
    *("(", ")", "[", "]", "|", ":", "\\", "<", ">", '"', "'", ",", ".", "{", "}", "+", "-", "\n"),
    *(" AND ", "BREAK", "<lora:a:1>", "<lyco:a>", "embedding:", ":1.3)", ":0.5]", "::3]", "[a|b"),
    *(".and(", ".blend(", ".swap(", ".add(", ").blend(1, 2)", "withLora(", "++", "--", "1.5"),
    *("(((((", ")))))", "[[[[[", "]]]]]", "red cat", "1e9", "-", ".5", "no_normalize"),
)
TARGET = Target(
    "prompt",
    run,
    names=("prompt", "blend", "and", "weights", "quot", "nest"),
    prepare=prepare,
    mutate=mutators.text(WORDS),
    errors=(InvalidArgumentError,),
    longest=512,
)
