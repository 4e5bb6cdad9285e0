"""Strings that are hard for a tokenizer."""

from __future__ import annotations

import random

HAND_PICKED = (
    "",
    " ",
    "\t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2003\u3000",
    "a photograph of an astronaut riding a horse",
    "A  SMALL\tRed\ncircle",
    "it's we're I'll they've I'm he'd can't 's 't ''s '",
    "don’t ‘quote’ “double”",
    "1 12 123 4567 3.14 1,000 ½ Ⅷ ٣ 三",
    "naïve café Ångström e\u0301 o\u0308 \u0041\u030a q\u0323\u0307",
    "ΣΑΣ ΌΣΟΣ ς Σ",
    "İSTANBUL ıI iİ",
    "STRASSE straße ẞ ﬁ ǅ",
    "日本語のテキスト 中文 한국어 조합",
    "\u1112\u1161\u11ab",
    "👩‍👩‍👧‍👦 🇫🇷 👍🏽 ❤️ 🧑‍🚀",
    "العربية עִבְרִית हिन्दी ไทย தமிழ்",
    "a\u0300\u0316\u0345\u0334b \u0340\u0341\u0343\u0344",
    "\u0897\u1ac1\U00010f46\U00011935\U00011930 \U000105d2\u0307",
    "zero\u200bwidth\ufeff \u200d\u2060 soft\u00adhyphen",
    "control \x00\x01\x02\x7f\x9f",
    "<|startoftext|>a<|endoftext|> b<|endoftext|>",
    "<|STARTOFTEXT|>x !<|ENDOFTEXT|>! <|EndOfText|><|endoftext|",
    "<|startoftext|><|startoftext|> <| endoftext |>",
    "a" * 3000,
    "ab" * 1500 + "é" * 500,
    "!" * 1000 + "?!" * 500,
    "word " * 500,
    "under_score-dash/slash\\back@mail#tag$%^&*()[]{}=+~`|<>",
    "\ud7b0\U0010ffff\ue000\U000f0000\U000e0001",
    "ﷺ ㍿ ™ ℃ Å K Ω",
    "ǆ Ǆ ŉ ΐ ᾳ ᾼ Ⱥ Ɐ Ꟊ Ꟑ",
)
_POOLS = (
    range(0x00, 0x80),
    range(0x20, 0x7F),
    range(0x00, 0x300),
    range(0x300, 0x370),
    range(0x370, 0x600),
    range(0x600, 0x1200),
    range(0x1E00, 0x2100),
    range(0x2100, 0x2C00),
    range(0x3000, 0x3200),
    range(0x4E00, 0x5000),
    range(0xA600, 0xA900),
    range(0xAC00, 0xAC80),
    range(0xFB00, 0xFE00),
    range(0x10000, 0x1F000),
    range(0x1F300, 0x1F700),
    range(0x20000, 0x20100),
    range(0x00, 0x110000),
)
_PIECES = (
    "",
    "",
    " ",
    "  ",
    "'s",
    "'LL",
    "1",
    "<|endoftext|>",
    "<|ENDOFTEXT|>",
    "Σ",
    "İ",
    "e\u0301",
)
_WORDS = ("photo", "Astronaut", "of", "a", "CIRCLE", "circle", "blue", "4k", "art-station", "it's")


def random_string(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.randint(1, 7)):
        if rng.random() < 0.25:
            parts.append(rng.choice(_WORDS))
        else:
            pool = rng.choice(_POOLS)
            points = (rng.choice(pool) for _ in range(rng.randint(1, 6)))
            parts += [chr(c) for c in points if not 0xD800 <= c < 0xE000]
        parts.append(rng.choice(_PIECES))
    return "".join(parts)
