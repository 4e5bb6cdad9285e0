"""Writing a new pair of keys."""

from __future__ import annotations

import os
from pathlib import Path

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.files import atomic_write, write_atomically
from sdexport.runtime.packages.minisign import PublicKey, SecretKey

PUBLIC_SUFFIX = ".pub"


def write_key_pair(path: Path, password: str | None) -> tuple[PublicKey, Path]:
    """Write a new secret key to a file that only its owner can read, and its public key next to it.

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
    for file in (path, public_path):
        if file.exists() or file.is_symlink():
            raise FileExistsError(f"{file} exists; a key is never overwritten")
    key = SecretKey.generate()
    content = key.to_text(password)
    write_atomically(public_path, key.public.to_text())
    try:
        with atomic_write(path) as secret:
            if hasattr(os, "fchmod"):  # not on Windows, where the folder's rights hold
                os.fchmod(secret.fileno(), 0o600)
            secret.write(content.encode())
    except BaseException:
        public_path.unlink(missing_ok=True)
        raise
    return key.public, public_path
