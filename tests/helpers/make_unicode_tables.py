"""Generates runtime/text/unicode_tables.py by querying the Rust tokenizer for every code point.

Run it when the `tokenizers` package moves to a newer version of Unicode: `python -m
tests.helpers.make_unicode_tables`. test_tokenizer_parity fails if the committed tables are stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

TARGET = Path(__file__).parents[2] / "runtime" / "text" / "unicode_tables.py"
HEADER = '''"""Unicode character classes of CLIP's tokenizer. Generated; do not edit.

Python's tables change with its version, and the Rust tokenizer mixes two versions of Unicode, so
the tables are kept here. LETTERS, NUMBERS and MARKS are "start length start length ..." in base 36,
each start relative to the end of the previous range. LOWER_CASE is pairs of code points in base 36.

Source: tests/helpers/make_unicode_tables.py, which queries the Rust tokenizer for each code point.
"""

'''


def code_points() -> Iterable[int]:
    return (c for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)


def classes() -> tuple[list[int], list[int]]:
    r"""Code points of \p{L} and of \p{N}: a run of letters is one word, each number is a word."""
    pattern = Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(pattern, "removed", invert=True)
    letters, numbers = [], []
    for c in code_points():
        pieces = len(split.pre_tokenize_str(chr(c) * 2))
        if pieces == 2:
            numbers.append(c)
        elif pieces == 1 and len(split.pre_tokenize_str("a" + chr(c))) == 1:
            letters.append(c)
    return letters, numbers


def marks() -> list[int]:
    """Code points that NFC treats as marks.

    NFC moves them after a mark of class 1 or before one of class 240, or composes or replaces them.
    """
    nfc = normalizers.NFC()
    overlay, iota = "\u0334", "\u0345"
    return [
        c
        for c in code_points()
        if any(
            nfc.normalize_str(text) != text
            for text in ("x" + chr(c) + overlay, "x" + iota + chr(c))
        )
        or chr(c) in overlay + iota
    ]


def lower_case() -> dict[int, str]:
    """Capitals that Python 3.11 does not have yet, with their lower case."""
    lower = normalizers.Lowercase()
    return {
        c: lower.normalize_str(chr(c))
        for c in code_points()
        if lower.normalize_str(chr(c)) != chr(c).lower()
    }


def base36(number: int) -> str:
    digits = ""
    while True:
        number, last = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[last] + digits
        if not number:
            return digits


def packed(points: list[int]) -> str:
    ranges: list[list[int]] = []
    for c in points:
        if ranges and ranges[-1][1] == c:
            ranges[-1][1] += 1
        else:
            ranges.append([c, c + 1])
    end, out = 0, []
    for start, stop in ranges:
        out += [base36(start - end), base36(stop - start)]
        end = stop
    return " ".join(out)


def wrapped(name: str, text: str) -> str:
    lines, line = [], ""
    for word in text.split(" "):
        if len(line) + len(word) > 90:
            lines.append(line)
            line = ""
        line += word + " "
    lines.append(line.rstrip())
    body = "\n".join(f'    "{part}"' for part in lines)
    return f"{name} = (\n{body}\n)\n"


def tables() -> str:
    letters, numbers = classes()
    text = HEADER + wrapped("LETTERS", packed(letters)) + "\n" + wrapped("NUMBERS", packed(numbers))
    text += "\n" + wrapped("MARKS", packed(marks()))
    pairs = " ".join(f"{base36(c)} {base36(ord(small))}" for c, small in lower_case().items())
    return text + "\n" + wrapped("LOWER_CASE", pairs)


if __name__ == "__main__":
    TARGET.write_text(tables(), encoding="utf-8")
