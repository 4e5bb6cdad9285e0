"""The one place where damage in a file of a checkpoint or a LoRA becomes CheckpointError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sdexport.engines.errors import CheckpointError, MissingDependencyError
from sdexport.engines.messages import one_line


@contextmanager
def parsing(what: object) -> Iterator[None]:
    """Turn any failure of the block into a CheckpointError whose message begins with `what`.

    For code that interprets files of unknown origin, where the libraries it calls may raise nearly
    anything. CheckpointError, a missing package, OSError and MemoryError pass through.
    """
    try:
        yield
    except (CheckpointError, MissingDependencyError, OSError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(f"{what}: {one_line(error, 1000)}") from error
