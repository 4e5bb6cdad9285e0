"""Which files of a package are read for their hashes, and when an altered one is found."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

import pytest

from sdexport import Package, PackageError, load_pipeline
from sdexport.engines.cache import file_states, hash_check, remembered_hashes, user_cache
from sdexport.engines.cache.file_states import state_of
from sdexport.runtime.packages.minisign import SecretKey
from sdexport.runtime.packages.signature import sign_package

WEIGHTS = "text_encoder/model.onnx_data"


@pytest.fixture(autouse=True)
def large_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, and a size from which on one file of the demo model is large."""
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(file_states, "SETTLED_NS", 0)
    for module in (remembered_hashes, hash_check):
        monkeypatch.setattr(module, "SMALLEST", 500_000)
    remembered_hashes._known.clear()
    yield
    remembered_hashes._known.clear()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the files that are read."""
    sizes: list[int] = []
    digest = hash_check._digest

    def note(file: BufferedReader) -> str:
        sizes.append(os.fstat(file.fileno()).st_size)
        return digest(file)

    monkeypatch.setattr(hash_check, "_digest", note)
    return sizes


@pytest.fixture
def keeps_times(package_copy: Path) -> None:
    with (package_copy / WEIGHTS).open("rb") as file:
        if state_of(file.fileno()) is None:
            pytest.skip("the folder for temporary files is on a file system without reliable times")


def _alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.usefixtures("keeps_times")
def test_unchanged_large_files_are_read_once(package_copy: Path, read: list[int]) -> None:
    first = Package.load(package_copy)
    count = len(read)
    assert first.hashes_checked and first.hashes and first.hashes.report().read == count
    read.clear()
    second = Package.load(package_copy)
    assert second.hashes and (package_copy / WEIGHTS).stat().st_size not in read and read
    report = second.hashes.report()
    assert (report.read, report.read + report.remembered) == (len(read), count)
    assert report.since is not None
    read.clear()
    assert Package.load(package_copy, verify_hashes=True).reads_every_hash and len(read) == count
    status = (package_copy / WEIGHTS).stat()
    _alter(package_copy / WEIGHTS)
    os.utime(package_copy / WEIGHTS, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(PackageError, match=f"{WEIGHTS} was altered: its SHA-256 does not match"):
        Package.load(package_copy)


@pytest.mark.usefixtures("keeps_times")
def test_files_are_read_when_a_signature_is_required(package_copy: Path, read: list[int]) -> None:
    pytest.importorskip("cryptography", reason="the extra sdexport[sign] is not installed")
    key = SecretKey.generate()
    sign_package(Package.load(package_copy), key)
    for options in ({"trusted_key": key.public}, {"trust": "signed"}):
        read.clear()
        loaded = Package.load(package_copy, wait=False, **options)  # type: ignore[arg-type]
        assert (package_copy / WEIGHTS).stat().st_size in read and loaded.reads_every_hash


def test_an_altered_component_is_never_run(
    package_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _alter(package_copy / WEIGHTS)
    opened, digest = threading.Event(), hash_check._digest

    def wait_and_read(file: BufferedReader) -> str:
        if os.fstat(file.fileno()).st_size == (package_copy / WEIGHTS).stat().st_size:
            assert opened.wait(60)  # until the component is open
        return digest(file)

    monkeypatch.setattr(hash_check, "_digest", wait_and_read)
    with load_pipeline(package_copy) as pipe:
        opened.set()
        with pytest.raises(PackageError, match=f"{WEIGHTS} was altered"):
            pipe.session("text_encoder")
        with pytest.raises(PackageError, match=f"{WEIGHTS} was altered"):
            pipe("a red circle", num_inference_steps=1, height=64, width=64)
        with pytest.raises(PackageError, match=f"{WEIGHTS} was altered"):
            _ = pipe.package.hashes_checked


def test_no_image_is_returned_if_any_file_was_altered(
    package_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text encoder is open already, so that its weights are not waited for by a component."""
    with load_pipeline(package_copy) as good:
        encoder = good.session("text_encoder")
        embeds = good.encode(["a red circle"], [""])
        _alter(package_copy / WEIGHTS)
        with load_pipeline(package_copy, sessions={"text_encoder": encoder}) as pipe:
            del encoder
            images: list[object] = []
            with pytest.raises(PackageError, match=f"{WEIGHTS} was altered"):
                images.append(
                    pipe(
                        prompt_embeds=embeds[1:],
                        negative_prompt_embeds=embeds[:1],
                        num_inference_steps=1,
                        height=64,
                        width=64,
                    )
                )
            assert not images


def test_altered_graphs_and_configurations_are_found_before_anything_reads_them(
    package_copy: Path,
) -> None:
    _alter(package_copy / "text_encoder" / "model.onnx")
    with pytest.raises(PackageError, match=r"text_encoder/model\.onnx was altered"):
        load_pipeline(package_copy)
