"""How minisign protects a secret key by a password: with scrypt, from the cryptography package.

Source: RFC 7914; N, r and p are those that libsodium's crypto_pwhash_scryptsalsa208sha256 derives
from its limits of operations and memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sdexport.engines.errors import InvalidArgumentError, MissingDependencyError
from sdexport.engines.messages import import_failure

OPERATIONS, MEMORY = 2**25, 2**30
"""For scrypt, as in minisign: 1 GiB of memory, and 2 to 5 seconds."""
_MOST_OPERATIONS = 4 * OPERATIONS


@contextmanager
def needs_cryptography() -> Iterator[None]:
    """Name the pip command if an import inside the block fails.

    Raises: MissingDependencyError.
    """
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"signatures need the cryptography package{import_failure(error)}; "
            "run: pip install 'sdexport[sign]'"
        ) from error


def password_stream(
    password: str, salt: bytes, size: int, *, operations: int, memory: int, what: object
) -> bytes:
    """`size` bytes that a secret key is combined with.

    Args:
      operations, memory: the limits that libsodium takes; memory in bytes.
      what: the key, for messages.

    Raises: InvalidArgumentError: more work or memory than minisign takes. MemoryError: there is
      not as much. MissingDependencyError: cryptography is not installed.
    """
    if operations > _MOST_OPERATIONS or memory > MEMORY:
        raise InvalidArgumentError(f"{what} is damaged, or needs too much memory to read")
    with needs_cryptography():
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    n, r, p = _scrypt_parameters(operations, memory)
    derived: bytes = Scrypt(salt, size, n, r, p).derive(password.encode(errors="surrogateescape"))
    return derived


def _scrypt_parameters(operations: int, memory: int) -> tuple[int, int, int]:
    """N, r and p of scrypt, as libsodium derives them from its two limits."""
    operations, r = max(operations, 2**15), 8
    bounded_by_memory = operations >= memory // 32
    most = memory // (r * 128) if bounded_by_memory else operations // (r * 4)
    n = 2
    while n <= most // 2:
        n *= 2
    p = max(1, operations // 4 // n // r) if bounded_by_memory else 1
    return n, r, p
