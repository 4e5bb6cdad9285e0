"""Keys and signatures in minisign's formats: its own files are read, and damaged ones rejected."""

from __future__ import annotations

import base64
import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdexport import InvalidArgumentError, MissingDependencyError, PackageError
from sdexport.runtime.packages import key_files
from sdexport.runtime.packages.key_files import write_key_pair
from sdexport.runtime.packages.minisign import PublicKey, SecretKey, Signature
from sdexport.runtime.packages.password_stream import _scrypt_parameters

pytest.importorskip("cryptography", reason="the extra sdexport[sign] is not installed")

MESSAGE = b"sdexport"
PUBLIC = "RWRX5PGIw0zEgUvaT0KdqnHdUYaI2PGLeDufeLWSsca+SHRgqPOafNUd"
PUBLIC_FILE = f"untrusted comment: minisign public key 81C44CC388F1E457\n{PUBLIC}\n"
SECRET_FILE = (
    "untrusted comment: minisign encrypted secret key\n"
    "RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAV+TxiMNMxIE2oTWCUi6c"
    "BGh4PSM+4VU2lsO89ECqJ1VYzFHVG4h1gEvaT0KdqnHdUYaI2PGLeDufeLWSsca+SHRgqPOafNUdAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAA=\n"
)
SIGNATURE_FILE = (
    "untrusted comment: signature from minisign secret key\n"
    "RURX5PGIw0zEgcezgNgXAdZGhG3dKlLLRG56/OtLx6AIIMxy4IMDIUIr+QzGVHHC4xOrhxkDCqkhbdhTjIThIYyYdUqsTDH7"
    "fQY=\n"
    "trusted comment: a trusted comment\n"
    "w3rHoOGfSQufMuj4HDQ9hDV0tRkyqe/o6idvFCDhuGeBcJLyoMHQI6Jw2PTLsptkGwmvS/MoDgr+T7NhxxwUBw==\n"
)
LEGACY_FILE = (
    "untrusted comment: signature from minisign secret key\n"
    "RWRX5PGIw0zEga1AyxqvCBO0zY8pHCoSeIPQOxP8zT5ZV1P/cRcz5XSL2wktbcCsLtJ143tgJvITCBm3UkjX0IWslm9aG2Cc"
    "7gY=\n"
    "trusted comment: a trusted comment\n"
    "+drlo/P9+VD0IatNM0EKXBRw9kiROUG1Wis1GGxKEzD8LBvcF2Qwdi7RYrGb1e9ZRzENwhC2rRMgMrPSAoorDg==\n"
)
"""Made by minisign 0.11: a key pair without password, and both kinds of signature of MESSAGE."""
ENCRYPTED_FILE = (
    "untrusted comment: minisign encrypted secret key\n"
    "RWRTY0IywYJE2fMy6HxxHIc+Eo4HTt95yUfGm+irAg4TfPTC4OsAAAACAAAAAAAAAEAAAAAA6IQWSno4CpfdvdpMLR9M4FuI"
    "eyv5IRzqWptdrF15DcMa5q+cLaiPdISw0gPy0snvtgkg831d4//mDSXs+pCf9VVjOjtCw424Qm42XTh6uWngVQaI1Csqol+W"
    "aYfbQAeqWMW6aT5RhWs=\n"
)
ENCRYPTED_PUBLIC = "RWRKUGW3wetJOdb2YsvR9YzFO0sA8WWVwxWJDbBiXykMuFXklRxgunvV"
"""Made by minisign 0.11 with the password "pw"; scrypt takes 1 GiB."""
QUICK = {"operations": 2**15, "memory": 2**20}


def no_password() -> str:
    raise AssertionError("the key has no password")


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def verified(content: str | bytes, message: bytes = MESSAGE) -> Signature:
    data = content.encode() if isinstance(content, str) else content
    return PublicKey.read(PUBLIC).verify(message, data, "x.minisig")


def test_signature_of_minisign_is_verified() -> None:
    assert verified(SIGNATURE_FILE) == Signature("81C44CC388F1E457", "a trusted comment")
    assert verified(SIGNATURE_FILE.replace("\n", "\r\n")) == verified(SIGNATURE_FILE)
    assert verified(SIGNATURE_FILE.replace("signature from", "anything")).comment


def test_key_files_of_minisign_are_read(tmp_path: Path) -> None:
    public = PublicKey.read(written(tmp_path / "a.pub", PUBLIC_FILE))
    assert public == PublicKey.read(PUBLIC) == PublicKey.read(str(tmp_path / "a.pub"))
    assert public == PublicKey.read(written(tmp_path / "b.pub", PUBLIC + "\r\n"))
    assert (public.to_base64(), public.to_text()) == (PUBLIC, PUBLIC_FILE)
    secret = SecretKey.read(written(tmp_path / "a.key", SECRET_FILE), no_password)
    assert secret.public == public
    assert verified(secret.sign(MESSAGE, "again")).comment == "again"


@pytest.mark.slow
def test_encrypted_key_of_minisign_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.key", ENCRYPTED_FILE)
    assert SecretKey.read(path, lambda: "pw").public == PublicKey.read(ENCRYPTED_PUBLIC)
    with pytest.raises(InvalidArgumentError, match="the password is wrong"):
        SecretKey.read(path, lambda: "PW")


def test_parameters_of_scrypt_are_those_of_libsodium() -> None:
    assert _scrypt_parameters(33554432, 1073741824) == (2**20, 8, 1)  # "sensitive"
    assert _scrypt_parameters(524288, 16777216) == (2**14, 8, 1)  # "interactive"
    assert _scrypt_parameters(2**20, 2**30) == (2**15, 8, 1)


@pytest.mark.parametrize("password", ["pw", "ein Paßwort 🔑", "x" * 1000, "\udcff"])
def test_encrypted_keys(tmp_path: Path, password: str) -> None:
    key = SecretKey.generate()
    path = written(tmp_path / "a.key", key.to_text(password, **QUICK))
    assert SecretKey.read(path, lambda: password) == key
    with pytest.raises(InvalidArgumentError, match=r"a\.key: the password is wrong, or it is dam"):
        SecretKey.read(path, lambda: f"{password} ")
    assert key.seed not in base64.b64decode(path.read_text().split("\n")[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LEGACY_FILE, r"x\.minisig is in minisign's legacy format; sign again, without -l"),
        (SIGNATURE_FILE.replace("a trusted", "A trusted"), "its trusted comment was altered"),
        (SIGNATURE_FILE.replace("w3rHo", "w3rHp"), "its trusted comment was altered"),
        (SIGNATURE_FILE.replace("gNgXA", "gNgXB"), "what was signed was altered"),
        (SIGNATURE_FILE.replace("RURX5P", "RURX5O"), "was made with key .*, not with 81C44CC3"),
        (SIGNATURE_FILE.replace("RURX", "RUVX"), "unknown algorithm"),
        (SIGNATURE_FILE.replace("RURX5", "RURX 5"), "a line is not base64"),
        (SIGNATURE_FILE.replace("fQY=", "fQ=="), "83 bytes|73 bytes"),
        (SIGNATURE_FILE + SIGNATURE_FILE, "is damaged: it is no signature of minisign"),
        (SIGNATURE_FILE[:100], "is damaged: it is no signature of minisign"),
        ("", "is damaged"),
        (b"\xff\xfe\x00" * 9, "is damaged"),
    ],
)
def test_damaged_signatures_are_rejected(content: str | bytes, message: str) -> None:
    with pytest.raises(PackageError, match=message) as raised:
        verified(content)
    assert "\n" not in str(raised.value)


def test_signature_of_something_else_is_rejected() -> None:
    with pytest.raises(PackageError, match="what was signed was altered, or is another one"):
        verified(SIGNATURE_FILE, b"sdexpors")


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, len(SIGNATURE_FILE) - 1), byte=st.integers(0, 255))
def test_signature_with_one_other_byte(at: int, byte: int) -> None:
    """Only the untrusted comment may be anything."""
    data = SIGNATURE_FILE.encode()
    changed = data[:at] + bytes([byte]) + data[at + 1 :]
    untrusted = len("untrusted comment: ") <= at < SIGNATURE_FILE.index("\n") and byte != 10
    if changed == data or untrusted:
        assert verified(changed)
    else:
        with pytest.raises(PackageError):
            verified(changed)


@pytest.mark.parametrize("kind", ["public", "secret"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "is no .* key of minisign"),
        (lambda text: text[:70], "is damaged|is no"),
        (lambda text: "\x00" * 60, "a line is not base64"),
        (lambda text: text * 2, "is no .* key of minisign"),
        (lambda text: text.replace("\nR", "\nU"), "unknown algorithm"),
        (lambda text: text.replace("\nRW", "\n!!"), "a line is not base64"),
        (lambda text: text + " " * 5000, "at most 4,096"),
        (lambda text: "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n", "is no"),
    ],
)
def test_damaged_key_files_are_rejected(
    tmp_path: Path, kind: str, change: Callable[[str], str], message: str
) -> None:
    path = written(tmp_path / "a.key", change({"public": PUBLIC_FILE, "secret": SECRET_FILE}[kind]))
    with pytest.raises(InvalidArgumentError, match=message) as raised:
        read_key(path, kind)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def read_key(path: Path, kind: str) -> object:
    return PublicKey.read(path) if kind == "public" else SecretKey.read(path, no_password)


def test_keys_of_the_other_kind_are_rejected(tmp_path: Path) -> None:
    public = written(tmp_path / "a.pub", PUBLIC_FILE)
    secret = written(tmp_path / "a.key", SECRET_FILE)
    with pytest.raises(InvalidArgumentError, match="is a secret key; a public key is needed here"):
        PublicKey.read(secret)
    with pytest.raises(InvalidArgumentError, match="is a public key; a secret key is needed here"):
        SecretKey.read(public, no_password)
    with pytest.raises(FileNotFoundError):
        PublicKey.read("RWnotakey")


def test_altered_secret_keys_are_rejected(tmp_path: Path) -> None:
    data = bytearray(base64.b64decode(SECRET_FILE.split("\n")[1]))
    data[70] ^= 1  # the seed
    path = written(tmp_path / "a.key", f"untrusted comment: x\n{base64.b64encode(data).decode()}")
    with pytest.raises(InvalidArgumentError, match="its public key is not that of its secret key"):
        SecretKey.read(path, no_password)
    data[2:4] = b"Sc"
    data[38:46] = (2**60).to_bytes(8, "little")
    written(path, f"untrusted comment: x\n{base64.b64encode(data).decode()}")
    with pytest.raises(InvalidArgumentError, match="is damaged, or needs too much memory to read"):
        SecretKey.read(path, lambda: "pw")


def test_pipes_and_folders_are_no_keys(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="is a folder"):
        PublicKey.read(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InvalidArgumentError, match="is not a regular file"):
            PublicKey.read(tmp_path / "pipe")


def test_new_key_pairs(tmp_path: Path) -> None:
    public, path = write_key_pair(tmp_path / "my.key", None)
    assert (path, PublicKey.read(path)) == (tmp_path / "my.pub", public)
    assert SecretKey.read(tmp_path / "my.key", no_password).public == public
    if sys.platform != "win32":
        assert stat.S_IMODE((tmp_path / "my.key").stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my.key", "my.pub"]
    before = (tmp_path / "my.key").read_bytes()
    for name in ("my.key", "my.other"):  # the public key exists, too
        with pytest.raises(FileExistsError, match="a key is never overwritten"):
            write_key_pair(tmp_path / name, None)
    assert (tmp_path / "my.key").read_bytes() == before
    with pytest.raises(InvalidArgumentError, match="the name of the public key"):
        write_key_pair(tmp_path / "new.pub", None)
    with pytest.raises(InvalidArgumentError, match="the password is empty"):
        write_key_pair(tmp_path / "new.key", "")
    with pytest.raises(FileNotFoundError):
        write_key_pair(tmp_path / "no" / "new.key", None)


def test_a_key_pair_that_a_killed_process_left_is_completed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "my.key"
    public, public_path = write_key_pair(path, None)
    secret = path.read_bytes()
    public_path.unlink()
    with pytest.raises(FileExistsError, match="a key is never overwritten"):
        write_key_pair(path, "password")  # the key that is there has none
    assert not public_path.exists()
    assert write_key_pair(path, None) == (public, public_path)
    assert PublicKey.read(public_path) == public and path.read_bytes() == secret
    assert "my.key was there without my.pub, which is written now" in caplog.text
    public_path.unlink()
    path.write_text(SecretKey.generate().to_text("right", 2**15, 2**20))
    for password in (None, "wrong"):
        with pytest.raises(FileExistsError, match="a key is never overwritten"):
            write_key_pair(path, password)
    write_key_pair(path, "right")
    public_path.unlink()
    path.write_text("no key")
    with pytest.raises(FileExistsError, match="a key is never overwritten"):
        write_key_pair(path, None)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    path.unlink()
    monkeypatch.setattr(key_files, "write_atomically", full)
    with pytest.raises(OSError, match="full"):
        write_key_pair(path, None)
    assert list(tmp_path.iterdir()) == []


def test_missing_cryptography_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "cryptography.hazmat.primitives.asymmetric"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sdexport\[sign\]'"):
        verified(SIGNATURE_FILE)
