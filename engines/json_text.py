"""JSON of unknown origin, whose values are counted before they are made.

A list takes 64 bytes of memory and three of a file: parsing would take 25 times the text's size.
"""

from __future__ import annotations

import json
from typing import Any

from sdexport.engines.messages import shown

MAX_CONTAINERS = 400_000
"""Lists and objects of one text; the merges of CLIP's tokenizer are 49,000."""
MAX_VALUES = 1_500_000


def parse_json(text: str, *, strict: bool = False) -> Any:
    """The value of a JSON text; brackets and commas in its strings are counted too.

    Args:
      strict: reject keys that are repeated, of which most readers take the last and some the first,
        and NaN and infinity, which are not JSON.
    Raises: ValueError: not JSON, or too many values. RecursionError: too deeply nested.
    """
    containers = text.count("[") + text.count("{")
    if containers > MAX_CONTAINERS or text.count(",") > MAX_VALUES:
        raise ValueError(
            f"it has more than {MAX_CONTAINERS:,} lists and objects, or {MAX_VALUES:,} values"
        )
    return json.loads(text, **(_STRICT if strict else {}))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {shown(name)} is there twice")
        found[name] = value
    return found


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is no number in JSON")


_STRICT: dict[str, Any] = {"object_pairs_hook": _unique, "parse_constant": _not_finite}
