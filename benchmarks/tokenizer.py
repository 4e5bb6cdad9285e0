"""ClipTokenizer compared with transformers' CLIPTokenizer, in one process, call by call in turn.

    python -m benchmarks.tokenizer --tokenizer DIR [--json FILE]

Measured are: loading the files; the same prompt of 20 words repeatedly, so that both know its
words; the same with our word cache emptied before each call; and prompts of words that are new to
both.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers import CLIPTokenizer

from benchmarks import timing
from sdexport import ClipTokenizer

PROMPT = (
    "a highly detailed portrait photograph of an old fisherman with weathered skin in soft "
    "morning light, shallow depth of field"
)
LOADS = 20


def unseen_prompts(folder: Path, count: int) -> list[str]:
    """Prompts of 20 words each from the vocabulary, no word twice."""
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    words = [t.removesuffix("</w>") for t in vocab if t.isascii() and t.endswith("</w>")]
    words = sorted(word for word in words if word.isalpha() and len(word) > 2)
    random.Random(0).shuffle(words)
    count = min(count, len(words) // 20)
    return [" ".join(words[20 * i : 20 * i + 20]) for i in range(count)]


def main() -> None:
    parser = timing.parser("tokenizer", __doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    args = parser.parse_args()
    ours = ClipTokenizer.from_folder(args.tokenizer)
    theirs = CLIPTokenizer.from_pretrained(args.tokenizer)

    def rows(prompt: str) -> list[list[int]]:
        return theirs([prompt], padding="max_length", max_length=77, truncation=True).input_ids

    unseen = unseen_prompts(args.tokenizer, args.repeats + timing.WARM_UP)
    for prompt in (PROMPT, *unseen):
        if ours([prompt]).tolist() != rows(prompt):
            raise RuntimeError(f"the ids differ for {prompt!r}")
    ours = ClipTokenizer.from_folder(args.tokenizer)
    theirs = CLIPTokenizer.from_pretrained(args.tokenizer)
    for_ours, for_theirs = itertools.cycle(unseen), itertools.cycle(unseen)
    timings = {
        "20 words, met before": timing.alternate(
            {"runtime": lambda: ours([PROMPT]), "transformers": lambda: rows(PROMPT)}, args.repeats
        ),
        "20 words, our cache emptied": timing.alternate(
            {"runtime": lambda: ours([PROMPT]), "transformers": lambda: rows(PROMPT)},
            args.repeats,
            before=lambda name: ours._words.clear(),
        ),
        "20 words, never met": timing.alternate(
            {
                "runtime": lambda: ours([next(for_ours)]),
                "transformers": lambda: rows(next(for_theirs)),
            },
            len(unseen) - timing.WARM_UP,
        ),
        "loading": timing.alternate(
            {
                "runtime": lambda: ClipTokenizer.from_folder(args.tokenizer),
                "transformers": lambda: CLIPTokenizer.from_pretrained(args.tokenizer),
            },
            LOADS,
        ),
    }
    report = {
        "prompt": PROMPT,
        "vocabulary": len(theirs),
        **timing.environment("numpy", "transformers", "tokenizers"),
        "tokenizer": timings,
    }
    timing.show_and_save(report, timings, args)


if __name__ == "__main__":
    main()
