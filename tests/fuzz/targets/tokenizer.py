"""The files of a tokenizer's folder, and then a text."""

from __future__ import annotations

import json
from pathlib import Path

from sdexport import ClipTokenizer
from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.runtime.text import bpe
from sdexport.runtime.text.comfyui_weights import tokenize_comfyui
from sdexport.runtime.text.prompt_weights import tokenize_weighted
from tests.fuzz import mutators
from tests.fuzz.harness import Target

TEXT = "A red circle, <cat> <cat>_1 naïve 日本 \U0001f600 <|endoftext|> !  café's 12 it's"
_SPECIALS = ("<|startoftext|>", "<|endoftext|>")


def small_tokenizer() -> dict[str, bytes]:
    """The files of a tokenizer with all bytes and two merges; with tokenizer.json as well."""
    symbols = list(bpe.byte_symbols())
    merges = [("r", "e"), ("re", "d</w>")]
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    tokens += [left + right for left, right in merges] + list(_SPECIALS)
    vocab = {token: number for number, token in enumerate(tokens)}
    config = {
        "bos_token": _SPECIALS[0],
        "eos_token": {"content": _SPECIALS[1], "lstrip": False, "normalized": False},
        "unk_token": _SPECIALS[1],
        "pad_token": "!",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    number = vocab[_SPECIALS[1]]
    fast = {
        "added_tokens": [
            {"id": number, "content": _SPECIALS[1], "special": True, "normalized": False},
            {"id": number + 1, "content": "<cat>", "lstrip": True, "rstrip": True},
        ],
        "model": {"type": "BPE", "vocab": vocab, "merges": [" ".join(pair) for pair in merges]},
    }
    texts = {
        "vocab.json": json.dumps(vocab),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "tokenizer_config.json": json.dumps(config),
        "special_tokens_map.json": json.dumps({k: config[k] for k in ("bos_token", "eos_token")}),
        "added_tokens.json": json.dumps({"<cat>": number + 1, "<cat>_1": number + 2}),
        "tokenizer.json": json.dumps(fast),
    }
    return {name: text.encode() for name, text in texts.items()}


FILES = small_tokenizer()
_ALWAYS = ("vocab.json", "merges.txt")


PROMPT = "prompt"
"""Name of a part of the input that is no file, but a text to encode."""


def write(folder: Path, data: bytes) -> None:
    (folder / "tokenizer").mkdir(exist_ok=True)
    found = {name: FILES[name] for name in _ALWAYS} | mutators.split(data)
    for name in FILES:
        path = folder / "tokenizer" / name
        if name in found:
            path.write_bytes(found[name])
        else:
            path.unlink(missing_ok=True)


def run(folder: Path, data: bytes) -> None:
    tokenizer = ClipTokenizer.from_folder(folder / "tokenizer")
    use(tokenizer, mutators.split(data).get(PROMPT, TEXT.encode()).decode("utf-8", "replace"))


def use(tokenizer: ClipTokenizer, prompt: str = TEXT) -> None:
    """Everything that a prompt goes through."""
    text = tokenizer.expand(prompt)
    ids = tokenizer([text, prompt[:200] * 4])
    assert ids.shape == (2, tokenizer.max_length)
    tokenizer.decode(tokenizer.encode(text)[:500])
    tokenizer.truncated_text(prompt[:300])
    tokenizer.embedding("cat")
    tokenize_weighted(tokenizer, ["a (red:1.2) [circle] BREAK <cat>"])
    tokenize_comfyui(tokenizer, ["a (red:1.2) embedding:cat"])


WORDS = (
    *("content", "special", "normalized", "single_word", "lstrip", "rstrip", "id", "added_tokens"),
    *("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens", "model"),
    *("extra_special_tokens", "added_tokens_decoder", "model_max_length", "vocab", "merges", "300"),
    *("<cat>", "<cat>_1", "<cat>_2", "a_token", "a", "</w>", "r e", "re", "red</w>", {"id": 3}),
    *({"content": "<cat>", "lstrip": True}, ["r", "e"], "!", 514, "<cat>_0", "<cat>_1_1"),
)
TARGET = Target(
    "tokenizer",
    run,
    names=("tokenizer",),
    write=write,
    mutate=mutators.files(
        {**FILES, PROMPT: TEXT.encode()},
        {
            PROMPT: mutators.text(
                ("<cat>", "<|endoftext|>", "'s", " ", "A", "red", "\u0301", "12")
            ),
            ".json": mutators.json_text(WORDS),
            ".txt": mutators.text(("#version", "\n", " ", "r e", "re d</w>", "</w>", "a b\n")),
        },
    ),
    errors=(PackageError, InvalidArgumentError),
    longest=16_384,
)
