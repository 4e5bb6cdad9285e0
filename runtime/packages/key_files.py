"""Writing a new pair of keys."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.files import atomic_write, write_atomically
from sdexport.runtime.packages.minisign import PublicKey, SecretKey

logger = logging.getLogger(__name__)

PUBLIC_SUFFIX = ".pub"


def write_key_pair(path: Path, password: str | None) -> tuple[PublicKey, Path]:
    """Write a new secret key to a file that only its owner can read, and its public key next to it.

    A process that is killed between the two leaves the secret key alone. The same call then writes
    the public key that belongs to it, and a warning says so.

    Args:
      password: of the secret key; None does not protect it.
    Returns: the public key, and its file: the same name that ends in ".pub".
    Raises: FileExistsError: one of the files exists. InvalidArgumentError: `path` ends in ".pub",
      or the password is empty. MissingDependencyError: see `ed25519`. MemoryError: scrypt needs
      1 GiB.
    """
    if path.suffix == PUBLIC_SUFFIX:
        raise InvalidArgumentError(f"{path}: {PUBLIC_SUFFIX} is the name of the public key")
    if password == "":
        raise InvalidArgumentError("the password is empty; a key without one needs --no-password")
    public_path = path.with_suffix(PUBLIC_SUFFIX)
    if os.path.lexists(public_path):
        raise _exists(public_path)
    if os.path.lexists(path):
        public = _secret_of_killed(path, password).public
        write_atomically(public_path, public.to_text())
        logger.warning("%s was there without %s, which is written now", path, public_path.name)
        return public, public_path
    key = SecretKey.generate()
    content, public_content = key.to_text(password), key.public.to_text()
    with atomic_write(path) as secret:
        if hasattr(os, "fchmod"):  # not on Windows, where the folder's rights hold
            os.fchmod(secret.fileno(), 0o600)
        secret.write(content.encode())
    try:
        write_atomically(public_path, public_content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return key.public, public_path


def _secret_of_killed(path: Path, password: str | None) -> SecretKey:
    """The key in a file whose public key is missing.

    Raises: FileExistsError: it is not one that the same call would have written.
    """
    asked = []

    def given() -> str:
        asked.append(True)
        return password or ""

    try:
        key = SecretKey.read(path, given)
    except (InvalidArgumentError, OSError) as error:
        raise _exists(path) from error
    if bool(asked) != (password is not None):  # one has a password, the other does not
        raise _exists(path)
    return key


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(f"{path} exists; a key is never overwritten")
