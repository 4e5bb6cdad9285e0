"""The keys of a server, one of which every request needs."""

from __future__ import annotations

from pathlib import Path

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.guarded_files import read_guarded

SHORTEST_KEY = 16
"""Characters of a key."""


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys in a file, one a line; none without a file.

    Raises: InvalidArgumentError: no key, or one that is easy to guess. FileNotFoundError.
    """
    if path is None:
        return ()
    content = read_guarded(path, error=InvalidArgumentError, limit=1_000_000)
    try:
        lines = content.decode("ascii").split()
    except UnicodeDecodeError:
        lines = []
    if not lines or any(len(line) < SHORTEST_KEY for line in lines):
        raise InvalidArgumentError(
            f"{path}: expected keys of {SHORTEST_KEY} or more ASCII characters, one a line; make "
            "one with: openssl rand -base64 32"
        )
    return tuple(lines)
