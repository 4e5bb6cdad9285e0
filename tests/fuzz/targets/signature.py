"""Signature files and both kinds of key files, in minisign's formats.

The first byte says which of them an input is.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

with suppress(ImportError):  # before inputs are run: they open no file outside of their folder
    import cryptography.exceptions
    import cryptography.hazmat.primitives.asymmetric.ed25519
    import cryptography.hazmat.primitives.kdf.scrypt  # noqa: F401

from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.runtime.packages.minisign import PublicKey, SecretKey, signing_key_id
from tests.fuzz import mutators
from tests.fuzz.harness import Target

PUBLIC = "RWRX5PGIw0zEgUvaT0KdqnHdUYaI2PGLeDufeLWSsca+SHRgqPOafNUd"


def run(folder: Path, data: bytes) -> None:
    kind, content, path = data[:1], data[1:], folder / "file"
    if kind == b"p":
        key = PublicKey.read(path)
        assert PublicKey.read(key.to_base64()) == key
    elif kind == b"s":
        SecretKey.read(path, lambda: "")
    else:
        signing_key_id(content, path)
        PublicKey.read(PUBLIC).verify(b"sdexport", content, path)


def write(folder: Path, data: bytes) -> None:
    (folder / "file").write_bytes(data[1:])


WORDS = ("untrusted comment: ", "trusted comment: ", "RUR", "RWR", "=", "\n", "\r\n", "AAAA")
TARGET = Target(
    "signature",
    run,
    names=("file",),
    needs="cryptography",
    write=write,
    mutate=mutators.text(WORDS),
    errors=(InvalidArgumentError, PackageError),
)
