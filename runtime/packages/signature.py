"""The signature of a package: a file next to sdexport.json that signs its bytes.

The manifest holds the SHA-256 of every file that an export writes, so that one signature covers
them all. Engines that were built later are not covered: see Trust.built_engines.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.files import write_atomically
from sdexport.engines.guarded_files import JSON_LIMIT, parsing, read_guarded
from sdexport.engines.messages import shown
from sdexport.runtime.packages.manifest import MANIFEST, Manifest, manifest_digest
from sdexport.runtime.packages.minisign import (
    SIGNATURE_LIMIT,
    PublicKey,
    SecretKey,
    Signature,
    signing_key_id,
)

if TYPE_CHECKING:
    from sdexport.runtime.packages.package import Package

SIGNATURE = f"{MANIFEST}.minisig"
"""Where minisign itself writes and looks for the signature of sdexport.json."""

TrustedKey = str | Path | PublicKey
"""A public key of minisign: its file, or its 56 characters of base64."""


def public_key(key: TrustedKey) -> PublicKey:
    """The key itself, or read from a file or from base64.

    Raises: InvalidArgumentError: it is no public key. FileNotFoundError: no such file.
    """
    if isinstance(key, PublicKey):
        return key
    if not isinstance(key, str | Path) or not str(key).strip():
        raise InvalidArgumentError(f"trusted_key must be a file or a public key, got {shown(key)}")
    return PublicKey.read(key)


def check_signature(folder: Path, manifest: Manifest, key: TrustedKey) -> Signature:
    """Verify that the manifest of a package was signed with a key.

    Args:
      manifest: as it was read; the signature must be that of the same manifest.
    Raises: PackageError: there is no signature, it is damaged or of another key, or something else
      was signed. InvalidArgumentError, FileNotFoundError: see `public_key`.
      MissingDependencyError: the cryptography package is not installed.
    """
    public = public_key(key)
    try:
        content = _signature_bytes(folder)
    except FileNotFoundError:
        raise PackageError(
            f"{folder} is not signed: it has no {SIGNATURE}; key {public.key_id} is required"
        ) from None
    signed = _manifest_bytes(folder, manifest)
    return public.verify(signed, content, folder / SIGNATURE)


def signer(package: Package) -> str | None:
    """The id of the key that a package claims to be signed with, unchecked; None without signature.

    Raises: PackageError: the signature file is damaged.
    """
    try:
        return signing_key_id(_signature_bytes(package.folder), package.folder / SIGNATURE)
    except FileNotFoundError:
        return None


def sign_package(package: Package, key: SecretKey) -> Path:
    """Write the signature of a package whose files were checked, in place of an older one.

    Returns: the signature file.
    Raises: PackageError: the package changed since it was loaded, or has no manifest. OSError: the
      folder cannot be written. MissingDependencyError: the cryptography package is not installed.
    """
    content = _manifest_bytes(package.folder, package.manifest)
    comment = f"timestamp:{int(time.time())}\tfile:{MANIFEST}\thashed\tpackage:{package.digest}"
    path = package.folder / SIGNATURE
    write_atomically(path, key.sign(content, comment))
    return path


def _signature_bytes(folder: Path) -> bytes:
    path = folder / SIGNATURE
    return read_guarded(path, error=PackageError, folder=folder, limit=SIGNATURE_LIMIT)


def _manifest_bytes(folder: Path, manifest: Manifest) -> bytes:
    """The bytes of sdexport.json.

    Raises: PackageError: there is none, or it is not `manifest` any more.
    """
    path = folder / MANIFEST
    try:
        content = read_guarded(path, error=PackageError, folder=folder, limit=JSON_LIMIT)
    except FileNotFoundError:
        raise PackageError(f"{folder} has no {MANIFEST}, which is what a signature signs") from None
    with parsing(PackageError, path):
        digest = manifest_digest(json.loads(content.decode("utf-8-sig")))
    if digest != manifest.digest:
        raise PackageError(f"{path}: the package changed on disk; load it again")
    return content
