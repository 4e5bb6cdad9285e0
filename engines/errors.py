"""Every error that sdexport raises on purpose.

    SDExportError              base class of all of them
      PackageError             a folder is not a package, is incomplete, or was altered
      EngineError              an engine cannot be opened or built, or failed while running
        WorkerError            a worker process died or broke its protocol
      CheckpointError          a checkpoint, LoRA, embedding or VAE file is damaged or not supported
      VerificationError        exported graphs do not reproduce the reference outputs
      InvalidArgumentError     an argument is out of range or of the wrong kind; also a ValueError
      MissingDependencyError   an optional package is not installed; also an ImportError

OSError passes through unchanged: a missing file, a full disk, a folder that cannot be written. Any
other exception is a bug in sdexport.
"""

from __future__ import annotations


class SDExportError(Exception):
    """Base class of the errors that sdexport raises on purpose."""


class PackageError(SDExportError):
    """A folder is not a package, is incomplete, or was altered."""


class EngineError(SDExportError):
    """An engine cannot be opened or built, or failed while running."""


class WorkerError(EngineError):
    """A worker process died or broke its protocol."""


class CheckpointError(SDExportError):
    """A checkpoint, LoRA, embedding or VAE file is damaged or not supported."""


class VerificationError(SDExportError):
    """Exported graphs do not reproduce the reference outputs."""


class InvalidArgumentError(SDExportError, ValueError):
    """An argument is out of range or of the wrong kind."""


class MissingDependencyError(SDExportError, ImportError):
    """An optional package is not installed; the message names the pip command."""
