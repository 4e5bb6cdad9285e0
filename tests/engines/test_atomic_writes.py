"""Atomic writes: what is at the name, whom they follow, and what they leave behind."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdexport import save_image
from sdexport.engines import EngineError, temporary_files
from sdexport.engines.cache.lock import locked
from sdexport.engines.files import atomic_write, write_atomically
from sdexport.runtime.images.metadata import FORMATS, GeneratedImage, to_image

posix = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and modes of POSIX")
WRITERS = 8


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@posix
def test_new_file_follows_the_umask_and_a_replaced_one_keeps_its_permissions(
    tmp_path: Path, umask: None
) -> None:
    path = tmp_path / "a.png"
    write_atomically(path, b"1")
    assert mode(path) == 0o640
    path.chmod(0o4604)
    write_atomically(path, b"2")
    assert (mode(path), path.read_bytes()) == (0o604, b"2")


@posix
@pytest.mark.parametrize("target", ["file", "missing", "itself"])
def test_link_is_replaced_and_not_followed(tmp_path: Path, target: str) -> None:
    other, link = tmp_path / "file", tmp_path / "link"
    other.write_bytes(b"other")
    other.chmod(0o600)
    link.symlink_to(link if target == "itself" else tmp_path / target)
    write_atomically(link, b"new")
    assert (link.is_symlink(), link.read_bytes(), other.read_bytes()) == (False, b"new", b"other")
    assert mode(link) != 0o600


@posix
def test_link_at_a_temporary_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    monkeypatch.setattr(temporary_files.secrets, "token_hex", lambda size: "0" * 2 * size)
    planted = tmp_path / f".a.{'0' * 16}.part"
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a", b"new")
    assert planted.is_symlink()
    assert victim.read_bytes() == b"kept"


@posix
@pytest.mark.parametrize("plant", ["link", "hard link", "pipe"])
def test_lock_file_that_somebody_planted_is_not_written(tmp_path: Path, plant: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "unet.lock"
    victim.write_bytes(b"kept")
    if plant == "link":
        path.symlink_to(victim)
    elif plant == "hard link":
        path.hardlink_to(victim)
    else:
        os.mkfifo(path)
    with pytest.raises(EngineError, match="is not a lock file"), locked(path, "unet"):
        pass
    assert victim.read_bytes() == b"kept"


@posix
def test_leftovers_of_killed_processes_are_deleted(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from sdexport.engines.files import atomic_write

with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path, other = tmp_path / "a.png", tmp_path / ".b.png.0123456789abcdef.part"
    subprocess.run([sys.executable, "-c", code, path])
    other.touch()
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_write(path) as slow:  # which is not abandoned while it is open
        slow.write(b"slow")
        write_atomically(path, b"fast")
        assert path.read_bytes() == b"fast"
    assert path.read_bytes() == b"slow"
    assert sorted(tmp_path.iterdir()) == [other, path]


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "ü" * 125 + ".png", "界" * 83 + ".png"])
def test_names_of_255_bytes(tmp_path: Path, name: str) -> None:
    write_atomically(tmp_path / name, b"1")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@posix
def test_device_and_pipe_are_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "a.png"
    os.mkfifo(pipe)
    image = to_image(np.full((8, 8, 3), 7, np.uint8))
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        save_image(image, pipe)
        assert reader.stdout is not None
        with Image.open(io.BytesIO(reader.stdout.read())) as read:
            assert np.array_equal(np.asarray(read), np.asarray(image))
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    write_atomically(Path("/dev/null"), b"1")
    assert stat.S_ISCHR(Path("/dev/null").lstat().st_mode)


@posix
@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd")
def test_standard_output_by_its_name_is_not_replaced(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from sdexport.engines.files import write_atomically

write_atomically(Path("/dev/stdout"), b"content")
"""
    assert subprocess.check_output([sys.executable, "-c", code]) == b"content"
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], check=True, stdout=out)
    assert (tmp_path / "out").read_bytes() == b"content"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_device_is_named() -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        write_atomically(Path("/dev/full"), b"1")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda folder: folder / "missing" / "a.png", FileNotFoundError),
        (lambda folder: folder, IsADirectoryError),
        (lambda folder: folder / ("a" * 300), OSError),
    ],
)
def test_error_names_the_file_that_is_wanted(
    tmp_path: Path, make: Callable[[Path], Path], error: type[OSError]
) -> None:
    path = make(tmp_path)
    with pytest.raises(error) as caught:
        write_atomically(path, b"1")
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


@posix
def test_file_above_the_limit_of_the_process_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    code = """
import resource, signal, sys
from pathlib import Path
from PIL import Image
from sdexport import save_image

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_image(Image.effect_noise((300, 300), 90), sys.argv[1])
except OSError as error:
    print(error)
"""
    said = subprocess.check_output([sys.executable, "-c", code, path], text=True)
    assert said.strip().endswith(f"File too large: '{path}'")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])


WRITER = """
import sys
from pathlib import Path
import numpy as np
from sdexport.runtime.images.metadata import GeneratedImage, to_image
from sdexport import save_image

path, value, form = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
image = to_image(np.full((64, 64, 3), value, np.uint8))
image.__class__ = GeneratedImage
for _ in range(12):
    image.save(path) if form == "method" else save_image(image, path)
"""


@posix  # Windows does not replace a file that is being read
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_every_read_finds_a_whole_file_while_eight_threads_save(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    images = [to_image(np.full((64, 64, 3), 20 * i, np.uint8)) for i in range(WRITERS)]
    for image in images:
        image.__class__ = GeneratedImage  # as it is with parameters
    images[0].save(path)
    whole = {saved(image, suffix, method) for image in images for method in (False, True)}

    def save(number: int) -> None:
        for turn in range(12):
            images[number].save(path) if turn % 2 else save_image(images[number], path)

    threads = [threading.Thread(target=save, args=[i]) for i in range(WRITERS)]
    for thread in threads:
        thread.start()
    assert read_while(path, lambda: any(thread.is_alive() for thread in threads)) <= whole
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_every_read_finds_a_whole_file_while_eight_processes_save(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_image(Image.new("RGB", (64, 64)), path)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, str(20 * i), ("method", "")[i % 2]])
        for i in range(WRITERS)
    ]
    for data in read_while(path, lambda: any(writer.poll() is None for writer in writers)):
        with Image.open(io.BytesIO(data)) as read:
            assert len(np.unique(np.asarray(read))) == 1
    assert [writer.wait() for writer in writers] == [0] * WRITERS
    assert list(tmp_path.iterdir()) == [path]


def saved(image: Image.Image, suffix: str, method: bool) -> bytes:
    """The content of an image's file."""
    file, form = io.BytesIO(), FORMATS[suffix]
    image.save(file, form) if method else save_image(image, file, format=form)
    return file.getvalue()


def read_while(path: Path, goes_on: Callable[[], bool]) -> set[bytes]:
    """Read a file again and again; returns what was found."""
    found = set()
    while goes_on():
        found.add(path.read_bytes())
    assert found
    return found
