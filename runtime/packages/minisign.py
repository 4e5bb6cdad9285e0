"""Key pairs and signatures in minisign's file formats, with the `cryptography` package.

Signatures are those of current versions: Ed25519 over the BLAKE2b digest of the message, and a
second one over the first and the trusted comment. The legacy format, which signs the message
itself, is rejected. Secret keys may be protected by a password (scrypt), as minisign's are.

Source: https://jedisct1.github.io/minisign, "Signature format" to "Private key format".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sdexport.engines.errors import (
    InvalidArgumentError,
    PackageError,
    SDExportError,
)
from sdexport.engines.guarded_files import read_guarded
from sdexport.engines.messages import shown
from sdexport.runtime.packages.password_stream import (
    MEMORY,
    OPERATIONS,
    needs_cryptography,
    password_stream,
)

KEY_LIMIT = 4096
"""Bytes of a key file. minisign's have 100 to 300."""
COMMENT_LIMIT = 8192
"""Bytes of a trusted comment, as in minisign."""
SIGNATURE_LIMIT = 2 * COMMENT_LIMIT
"""Bytes of a signature file. minisign's have 300."""

_COMMENT, _TRUSTED = b"untrusted comment: ", b"trusted comment: "
_PUBLIC = struct.Struct("2s8s32s")
"""Algorithm, key id, key."""
_SIGNATURE = struct.Struct("2s8s64s")
"""Algorithm, key id, signature."""
_SECRET = struct.Struct("<2s2s2s32sQQ104s")
"""Algorithms of signature, key derivation and checksum; salt, operations, memory, _SECRET_PART."""
_SECRET_PART = struct.Struct("8s32s32s32s")
"""What the password protects: key id, seed, public key, checksum."""
_ED25519, _PREHASHED, _SCRYPT, _PLAIN, _BLAKE2B = b"Ed", b"ED", b"Sc", b"\0\0", b"B2"

Password = Callable[[], str]
"""Returns the password of a secret key; called only for a key that has one."""


@dataclass(frozen=True)
class Signature:
    """A signature that was verified.

    key_id: of the key, as minisign prints it. comment: the trusted comment, which is signed too.
    """

    key_id: str
    comment: str

    def __str__(self) -> str:
        return f"{self.key_id} ({', '.join(self.comment.split())})"


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key of 32 bytes, and the 8 bytes by which signatures name it."""

    number: bytes
    key: bytes = field(repr=False)

    @classmethod
    def read(cls, source: str | Path) -> Self:
        """A public key from a file, or from its 56 characters of base64.

        Raises: InvalidArgumentError: it is neither. FileNotFoundError: no such file.
        """
        text = source.strip() if isinstance(source, str) else ""
        length = _base64_length(_PUBLIC.size)
        if len(text) == length and text.startswith("RW"):  # "Ed" in base64
            return cls._parse(text.encode(errors="replace"), "the key")
        try:
            line = _key_line(Path(source), "public")
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{source!s:.200}: no such file, and no public key of {length} characters"
            ) from None
        return cls._parse(line, str(source))

    @classmethod
    def _parse(cls, line: bytes, what: str) -> Self:
        data = _decoded(line, _PUBLIC, what, InvalidArgumentError, "public key of minisign")
        algorithm, number, key = data
        if algorithm != _ED25519:
            raise InvalidArgumentError(f"{what} has an unknown algorithm {shown(algorithm)}")
        return cls(number, key)

    @property
    def key_id(self) -> str:
        """The id as minisign prints it: 16 hexadecimal digits."""
        return key_id(self.number)

    def to_base64(self) -> str:
        """The second line of a key file."""
        return base64.b64encode(_PUBLIC.pack(_ED25519, self.number, self.key)).decode()

    def to_text(self) -> str:
        """The content of a key file."""
        comment = f"minisign public key {self.key_id}"
        return f"{_COMMENT.decode()}{comment}\n{self.to_base64()}\n"

    def verify(self, message: bytes, content: bytes, what: object) -> Signature:
        """Verify the content of a signature file.

        Args:
          what: the signature, for messages.
        Raises: PackageError: it is damaged, by another key, of something else, or of the older
          format. MissingDependencyError: see `ed25519`.
        """
        number, signature, comment, global_signature = _parsed(content, what)
        if number != self.number:
            raise PackageError(f"{what} was made with key {key_id(number)}, not with {self.key_id}")
        public = ed25519().Ed25519PublicKey.from_public_bytes(self.key)
        if not _is_valid(public, signature, _digest(message)):
            raise PackageError(
                f"{what} is not valid: what was signed was altered, or is another one"
            )
        if not _is_valid(public, global_signature, signature + comment):
            raise PackageError(f"{what} is not valid: its trusted comment was altered")
        return Signature(self.key_id, comment.decode("utf-8", "replace"))


@dataclass(frozen=True)
class SecretKey:
    """An Ed25519 secret key, and the 8 bytes by which signatures name it."""

    number: bytes
    seed: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """A new key."""
        return cls(os.urandom(8), os.urandom(32))

    @classmethod
    def read(cls, path: Path, password: Password) -> Self:
        """Read a key file.

        Raises: InvalidArgumentError: it is damaged or a public key, or the password is wrong.
          FileNotFoundError: no such file. MemoryError: scrypt needs 1 GiB.
        """
        line = _key_line(path, "secret")
        data = _decoded(line, _SECRET, str(path), InvalidArgumentError, "secret key of minisign")
        algorithm, derivation, checksum, salt, operations, memory, part = data
        known = (algorithm, checksum) == (_ED25519, _BLAKE2B)
        if not known or derivation not in (_SCRYPT, _PLAIN):
            raise InvalidArgumentError(f"{path} has an unknown algorithm; use a key of minisign")
        if derivation == _SCRYPT:
            stream = password_stream(
                password(), salt, len(part), operations=operations, memory=memory, what=path
            )
            part = bytes(a ^ b for a, b in zip(part, stream, strict=True))
        number, seed, public, found = _SECRET_PART.unpack(part)
        if derivation == _PLAIN and not any(found):  # as minisign -W leaves it
            found = _checksum(number, seed, public)
        if not hmac.compare_digest(found, _checksum(number, seed, public)):
            wrong = "the password is wrong, or it is damaged"
            raise InvalidArgumentError(
                f"{path}: {wrong if derivation == _SCRYPT else 'it is damaged'}"
            )
        key = cls(number, seed)
        if key.public.key != public:
            raise InvalidArgumentError(f"{path}: its public key is not that of its secret key")
        return key

    @property
    def public(self) -> PublicKey:
        """The public key."""
        return PublicKey(self.number, self._private().public_key().public_bytes_raw())

    def sign(self, message: bytes, comment: str) -> bytes:
        """The content of a signature file.

        Args:
          comment: the trusted comment, one line.
        """
        private, line = self._private(), comment.encode()
        signature = private.sign(_digest(message))
        data = _SIGNATURE.pack(_PREHASHED, self.number, signature)
        lines = [
            _COMMENT + f"signature from sdexport, key {key_id(self.number)}".encode(),
            base64.b64encode(data),
            _TRUSTED + line,
            base64.b64encode(private.sign(signature + line)),
        ]
        return b"\n".join(lines) + b"\n"

    def to_text(
        self, password: str | None, operations: int = OPERATIONS, memory: int = MEMORY
    ) -> str:
        """The content of a key file; None does not protect it.

        Args:
          operations, memory: of scrypt.
        """
        public = self.public.key
        part = _SECRET_PART.pack(
            self.number, self.seed, public, _checksum(self.number, self.seed, public)
        )
        derivation, salt = _PLAIN, bytes(32)
        if password is None:
            operations = memory = 0
        else:
            derivation, salt = _SCRYPT, os.urandom(32)
            stream = password_stream(
                password, salt, len(part), operations=operations, memory=memory, what="the new key"
            )
            part = bytes(a ^ b for a, b in zip(part, stream, strict=True))
        data = _SECRET.pack(_ED25519, derivation, _BLAKE2B, salt, operations, memory, part)
        kind = "secret key" if password is None else "encrypted secret key"
        return f"{_COMMENT.decode()}minisign {kind}\n{base64.b64encode(data).decode()}\n"

    def _private(self) -> Any:
        return ed25519().Ed25519PrivateKey.from_private_bytes(self.seed)


def ed25519() -> Any:
    """The module of cryptography.

    Raises: MissingDependencyError: it is not installed.
    """
    with needs_cryptography():
        from cryptography.hazmat.primitives.asymmetric import ed25519 as module
    return module


def signing_key_id(content: bytes, what: object) -> str:
    """The key that the content of a signature file names; nothing is verified.

    Raises: PackageError: it is damaged.
    """
    return key_id(_parsed(content, what)[0])


def key_id(number: bytes) -> str:
    """The bytes that name a key, as minisign prints them."""
    return f"{int.from_bytes(number, 'little'):016X}"


def _base64_length(size: int) -> int:
    """Characters of base64 for that many bytes."""
    return -(-size // 3) * 4


def _parsed(content: bytes, what: object) -> tuple[bytes, bytes, bytes, bytes]:
    """Key id, signature, trusted comment and global signature of a signature file."""
    lines = content.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
    expected = (_COMMENT, b"", _TRUSTED, b"")
    if len(lines) != len(expected) or not all(map(bytes.startswith, lines, expected)):
        raise PackageError(f"{what} is damaged: it is no signature of minisign")
    algorithm, number, signature = _decoded(
        lines[1], _SIGNATURE, what, PackageError, "signature of minisign"
    )
    if algorithm == _ED25519:
        raise PackageError(f"{what} is in minisign's legacy format; sign again, without -l")
    if algorithm != _PREHASHED:
        raise PackageError(f"{what} is damaged: unknown algorithm {shown(algorithm)}")
    (second,) = _decoded(
        lines[3], struct.Struct("64s"), what, PackageError, "signature of minisign"
    )
    return number, signature, lines[2].removeprefix(_TRUSTED), second


def _key_line(path: Path, kind: str) -> bytes:
    """The second line of a key file.

    Raises: InvalidArgumentError: it is no key file, or one of the other kind.
    """
    content = read_guarded(path, error=InvalidArgumentError, limit=KEY_LIMIT)
    lines = content.strip().replace(b"\r\n", b"\n").split(b"\n")
    if len(lines) == 1:  # a public key without its comment, as it is published
        lines.insert(0, _COMMENT)
    if len(lines) != 2 or not lines[0].startswith(_COMMENT.strip()):
        raise InvalidArgumentError(f"{path} is no {kind} key of minisign")
    lengths = {"public": _base64_length(_PUBLIC.size), "secret": _base64_length(_SECRET.size)}
    other = "secret" if kind == "public" else "public"
    if len(lines[1]) == lengths[other]:
        raise InvalidArgumentError(f"{path} is a {other} key; a {kind} key is needed here")
    return lines[1]


def _decoded(
    line: bytes, form: struct.Struct, what: object, error: type[SDExportError], kind: str
) -> tuple[Any, ...]:
    """The values in a line of base64.

    Raises: `error`: it is damaged.
    """
    try:
        data = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raise error(f"{what} is damaged: a line is not base64") from None
    if len(data) != form.size:
        raise error(f"{what} is no {kind}: it has {len(data)} bytes, not {form.size}")
    return form.unpack(data)


def _is_valid(public: Any, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _digest(message: bytes) -> bytes:
    return hashlib.blake2b(message).digest()


def _checksum(number: bytes, seed: bytes, public: bytes) -> bytes:
    return hashlib.blake2b(_ED25519 + number + seed + public, digest_size=32).digest()
