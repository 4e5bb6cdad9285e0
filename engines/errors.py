"""Every error that sdexport raises on purpose.

    SDExportError              base class of all of them
      PackageError             a folder is not a package, is incomplete, or was altered
      EngineError              an engine cannot be opened or built, or failed while running
        WorkerError            a worker process died or broke its protocol
        OutOfMemoryError       the memory does not suffice; also a MemoryError
      CheckpointError          a checkpoint, LoRA, embedding or VAE file is damaged or not supported
      VerificationError        exported graphs do not reproduce the reference outputs
      InvalidArgumentError     an argument is out of range or of the wrong kind; also a ValueError
      MissingDependencyError   an optional package is not installed; also an ImportError

OSError passes through unchanged: a missing file, a full disk, a folder that cannot be written. Any
other exception is a bug in sdexport.
"""

from __future__ import annotations

import re

from sdexport.engines.printable_text import escaped


class SDExportError(Exception):
    """Base class of the errors that sdexport raises on purpose.

    The message is one line without control characters, whatever it quotes from a file.
    """

    def __str__(self) -> str:
        return escaped(" ".join(super().__str__().split("\n")))


class PackageError(SDExportError):
    """A folder is not a package, is incomplete, or was altered."""


class EngineError(SDExportError):
    """An engine cannot be opened or built, or failed while running."""


class WorkerError(EngineError):
    """A worker process died or broke its protocol."""


class OutOfMemoryError(EngineError, MemoryError):
    """The machine's memory, or the GPU's, does not suffice; the message says what needs less."""


class CheckpointError(SDExportError):
    """A checkpoint, LoRA, embedding or VAE file is damaged or not supported."""


class VerificationError(SDExportError):
    """Exported graphs do not reproduce the reference outputs."""


class InvalidArgumentError(SDExportError, ValueError):
    """An argument is out of range or of the wrong kind."""


class MissingDependencyError(SDExportError, ImportError):
    """An optional package is not installed; the message names the pip command."""


_OUT_OF_MEMORY = re.compile(
    r"bad[_ ]alloc|out[ _]?of[ _]?memory|(not enough|insufficient) memory|allocation failed"
    r"|memory of \d+ is smaller\b"
    r"|(failed|unable|could not|cannot|can't|can not) (to )?(be )?allocated?\b",
    re.IGNORECASE,
)
NEEDS_LESS = (
    "a smaller size, fewer images at once, the VAE in tiles (--tile, vae_tile) and one component "
    "at a time (--low-memory, low_memory) need less"
)


def is_out_of_memory(text: str) -> bool:
    """Whether the message of a library says that memory could not be allocated."""
    return _OUT_OF_MEMORY.search(text) is not None


def engine_error(message: str) -> EngineError:
    """The error for what a library reported: OutOfMemoryError if it is about memory."""
    if is_out_of_memory(message):
        return OutOfMemoryError(f"{message}; {NEEDS_LESS}")
    return EngineError(message)
