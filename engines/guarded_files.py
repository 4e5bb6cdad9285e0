"""Opening files that are not trusted: those of a package, engines, configurations, arrays.

Every such file is opened here, so that a link, a pipe, a device or a file of endless length in its
place is an error of one line. Libraries that open a file by its path, such as ONNX Runtime, are
called within `CheckedFiles.unchanged`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Self

from sdexport.engines.errors import InvalidArgumentError, PackageError, SDExportError
from sdexport.engines.messages import one_line

MIB = 2**20
JSON_LIMIT = 4 * MIB
"""Bytes of a manifest, sidecar or configuration. The largest known has 0.3 MB; parsing takes up to
25 times the file's size in memory."""
TOKENIZER_LIMIT = 6 * MIB
"""Bytes of one file of a tokenizer. CLIP's largest has 3.6 MB."""
REFERENCE_LIMIT = 256 * MIB
"""Bytes of one file of reference arrays; an export writes a few MB, also of SDXL."""
ARRAYS_LIMIT = 1024 * MIB
"""Bytes of a file of arrays that a user gives, such as prompt embeddings: 1,600 rows of SDXL."""
IMAGE_LIMIT = 512 * MIB
"""Bytes of an image file: 67 million pixels of 3 channels and 16 bits, uncompressed."""

_READ = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)  # a pipe without a writer would block
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_DESCENDS = bool(_NOFOLLOW) and os.open in os.supports_dir_fd and os.stat in os.supports_dir_fd
_SNAPSHOTS, _BLOBS = "snapshots", "blobs"


@dataclass(frozen=True)
class FileIdentity:
    """What tells one file, and one state of it, from another without reading it."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """From what `os.stat` reports."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class CheckedFiles:
    """Files by path, each with its identity when it was checked; see UNCHECKED for none."""

    def __init__(self, identities: Mapping[Path, FileIdentity] | None) -> None:
        self._identities = None if identities is None else dict(identities)

    def of(self, paths: Iterable[Path]) -> CheckedFiles:
        """Those at `paths`.

        Raises: PackageError: one was not there when the others were checked.
        """
        if self._identities is None:
            return self
        return CheckedFiles({path: self._identity(path, self._identities) for path in paths})

    def within(self, folder: Path) -> CheckedFiles:
        """Those directly in a folder."""
        known = self._identities
        if known is None:
            return self
        return CheckedFiles({path: known[path] for path in known if path.parent == folder})

    def check(self) -> None:
        """Compare every file's identity with that of now.

        Raises: PackageError: one was replaced, written to or deleted.
        """
        for path, identity in (self._identities or {}).items():
            try:
                present = FileIdentity.of(path.stat())
            except OSError:
                present = None
            if present != identity:
                raise _changed(path)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Check before and after a block that opens the files by their paths.

        Raises: PackageError: see `check`; also in place of an error of the block.
        """
        self.check()
        try:
            yield
        finally:
            self.check()

    @staticmethod
    def _identity(path: Path, known: Mapping[Path, FileIdentity]) -> FileIdentity:
        if path not in known:
            raise _changed(path)
        return known[path]


UNCHECKED = CheckedFiles(None)
"""For files outside of a package, or of one that is being written: nothing is compared."""


def open_guarded(
    path: Path, *, error: type[SDExportError], folder: Path | None = None, limit: int | None = None
) -> BufferedReader:
    """Open a regular file for reading, without waiting for a pipe.

    Args:
      error: raised for whatever is not allowed.
      folder: `path` must lie in it, and neither the file nor a folder in between may be a link.
        Excepted are the links of a hub cache's snapshot to the blobs of the same cache.
      limit: the most bytes that the file may have.
    Raises: FileNotFoundError: no such file. OSError: it cannot be read.
    """
    try:
        descriptor = _opened(path, None, error) if folder is None else _inside(path, folder, error)
    except SDExportError:  # which may be a ValueError
        raise
    except ValueError as cause:  # a NUL in the name
        raise error(f"{path!s:.200} is no file name: {one_line(cause)}") from cause
    file = os.fdopen(descriptor, "rb")
    try:
        status = os.fstat(descriptor)
        _check_regular(path, status, error)
        if limit is not None and status.st_size > limit:
            raise error(f"{path} has {status.st_size:,} bytes; at most {limit:,} are read")
    except BaseException:
        file.close()
        raise
    return file


def read_guarded(
    path: Path, *, error: type[SDExportError], folder: Path | None = None, limit: int
) -> bytes:
    """The content of a file; arguments and errors are those of `open_guarded`."""
    with open_guarded(path, error=error, folder=folder, limit=limit) as file:
        return read_limited(file, path, error=error, limit=limit)


def read_limited(
    file: BufferedReader, path: Path, *, error: type[SDExportError], limit: int
) -> bytes:
    """The rest of an open file; `error` if that is more than `limit` bytes."""
    content = file.read(limit + 1)
    if len(content) > limit:
        raise error(f"{path} is longer than {limit:,} bytes; no more are read")
    return content


@contextmanager
def parsing(error: type[SDExportError], what: object) -> Iterator[None]:
    """Turn every failure of a parser into `error`: "<what> is damaged: <reason>".

    Errors of sdexport, MemoryError, and an OSError that names a path pass through. An
    InvalidArgumentError is about a value in the file, so it is a failure too.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as cause:
        is_own = isinstance(cause, SDExportError) and not isinstance(cause, InvalidArgumentError)
        if is_own or isinstance(cause, error):
            raise
        if isinstance(cause, OSError) and cause.filename is not None:
            raise
        reason = f"no {one_line(cause)}" if isinstance(cause, KeyError) else one_line(cause, 300)
        raise error(f"{what} is damaged: {reason}") from cause


def _inside(path: Path, folder: Path, error: type[SDExportError]) -> int:
    """Open a file below a folder; no component below the folder is followed if it is a link."""
    try:
        parts = path.relative_to(folder).parts
    except ValueError:
        raise error(f"{folder}: '{path}' points outside of the folder") from None
    if not parts or ".." in parts:
        raise error(f"{folder}: '{path}' points outside of the folder")
    if not _DESCENDS:
        return _inside_by_path(path, folder, parts, error)
    at = os.open(folder, _FOLDER)
    try:
        for part in parts[:-1]:
            status = os.stat(part, dir_fd=at, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                raise _is_link(path, error)
            inner = os.open(part, _FOLDER | _NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        status = os.stat(parts[-1], dir_fd=at, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            return _opened(_blob(path, folder, error), None, error)
        _check_regular(path, status, error)
        return _opened(Path(parts[-1]), at, error)
    except NotADirectoryError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except OSError as cause:
        if cause.errno == errno.ELOOP:  # it has become a link in between
            raise _is_link(path, error) from cause
        cause.filename = str(path)
        raise
    finally:
        os.close(at)


def _inside_by_path(
    path: Path, folder: Path, parts: tuple[str, ...], error: type[SDExportError]
) -> int:
    """`_inside` where the system cannot open a file relative to an open folder."""
    at = folder
    for part in parts[:-1]:
        at /= part
        if at.is_symlink() or at.resolve() != at.parent.resolve() / part:  # a junction, too
            raise _is_link(path, error)
    if path.is_symlink():
        return _opened(_blob(path, folder, error), None, error)
    return _opened(path, None, error)


def _opened(path: Path, at: int | None, error: type[SDExportError]) -> int:
    """Open a regular file; relative to the folder `at`, and then without following a link."""
    if at is not None:
        return os.open(path, _READ | _NOFOLLOW, dir_fd=at)
    _check_regular(path, path.stat(), error)  # opening a device may have effects
    return os.open(path, _READ)


def _check_regular(path: Path, status: os.stat_result, error: type[SDExportError]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise error(f"{path} is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path} is not a regular file")


def _blob(path: Path, folder: Path, error: type[SDExportError]) -> Path:
    """The file that a link of a hub cache points to: a blob of the same cache.

    Such a cache has the folders REPO/snapshots/REVISION/... and REPO/blobs.
    """
    target = path.parent / path.readlink()
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.parent.name == _SNAPSHOTS:
            blobs = place.parent.parent / _BLOBS
            in_cache = target.parent.resolve() == blobs.resolve() and not blobs.is_symlink()
            if in_cache and not target.is_symlink():
                return target
    raise _is_link(path, error)


def _is_link(path: Path, error: type[SDExportError]) -> SDExportError:
    return error(f"{path} is a link, or in a linked folder; links are not followed here")


def _changed(path: Path) -> PackageError:
    return PackageError(f"{path}: the package changed on disk; load it again")
