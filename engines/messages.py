"""Values and errors as they appear in a message: on one line, and not too long."""

from __future__ import annotations

import numpy as np

from sdexport.engines.printable_text import escaped


def one_line(error: BaseException | str, limit: int | None = None) -> str:
    """The text of an error on one line, cut to `limit` characters; its type if it has no text.

    Control characters are escaped: the text may quote a file.
    """
    text = escaped(" ".join(str(error).split()))
    return text[:limit] or type(error).__name__


def import_failure(error: ImportError) -> str:
    """The reason, in brackets, if a module is installed but fails, as with a missing library.

    Returns: "" if the module is not installed.
    """
    return "" if isinstance(error, ModuleNotFoundError) else f" ({one_line(error)})"


def shown(value: object, limit: int = 60) -> str:
    """`repr(value)` on one line, cut to `limit` characters; dtype and shape of an array."""
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {value.shape}"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer too long for Python to write out
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def plain(name: str, limit: int = 120) -> str:
    """A name from a file: as it is, or its `repr` cut to `limit` if it is long or not printable."""
    return name if name.isprintable() and len(name) <= limit else shown(name, limit)
