"""Files and packages that several threads or processes write while others read them.

Every read must find a whole file, and every load one of the two packages. `python -m
benchmarks.soak` runs this.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdexport import Package, SDExportError, save_image
from sdexport.demo_model import PACKAGE_DIR
from sdexport.package_folder import package_folder
from tests.helpers.changed_package import accept_files, edit_manifest

WRITERS, WRITES = 8, 200
SIDE = 64
LOADS, LOADERS, PAUSE = 25, 2, 0.1
GAVE_UP = "the package changes on disk all the time"
"""The error of a load during which the package was replaced several times."""
PROCESS = """
import sys
from benchmarks.concurrency import write
write(sys.argv[1], int(sys.argv[2]))
"""


def write(path: str, number: int) -> None:
    """Save an image of one colour again and again."""
    image = Image.fromarray(np.full((SIDE, SIDE, 3), 20 * number, np.uint8))
    image.info["parameters"] = f"image {number}"
    for _ in range(WRITES):
        save_image(image, path)


def threads_save() -> dict[str, Any]:
    """Eight threads save to one path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        threads = [
            threading.Thread(target=write, args=(str(path), number)) for number in range(WRITERS)
        ]
        for thread in threads:
            thread.start()
        return _read(path, lambda: any(thread.is_alive() for thread in threads))


def processes_save() -> dict[str, Any]:
    """Eight processes save to one path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        processes = [
            subprocess.Popen([sys.executable, "-c", PROCESS, path, str(number)])
            for number in range(WRITERS)
        ]
        found = _read(path, lambda: any(process.poll() is None for process in processes))
        if any(process.returncode for process in processes):
            raise RuntimeError("a process that saves has failed")
        return found


def _read(path: Path, goes_on: Callable[[], bool]) -> dict[str, Any]:
    """Read the file while others write it; only it may be there afterwards."""
    found = Counter[str]()
    contents = set()
    while goes_on():
        if path.exists():
            content = path.read_bytes()
            found["reads"] += 1
            if content not in contents:
                found["damaged"] += not _is_whole(content)
                contents.add(content)
    left = [each.name for each in path.parent.iterdir() if each != path]
    return {
        "writers": WRITERS,
        "writes": WRITERS * WRITES,
        "reads": found["reads"],
        "contents": len(contents),
        "damaged": found["damaged"],
        "left_over": len(left),
    }


def _is_whole(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:
            value = int(np.unique(np.asarray(image)).item())
            return bool(image.text["parameters"] == f"image {value // 20}")  # type: ignore[attr-defined]
    except (OSError, ValueError, KeyError, SyntaxError):
        return False


def package_is_replaced() -> dict[str, Any]:
    """Threads load a package, with all hashes, while two others take its place in turn."""
    found = Counter[str]()
    lock = threading.Lock()
    with tempfile.TemporaryDirectory() as work:
        destination = Path(work) / "package"
        both = [_other_package(Path(work) / str(number), number) for number in range(2)]
        shutil.copytree(both[0], destination)

        def load() -> None:
            for _ in range(LOADS):
                try:
                    what = f"package {Package.load(destination).manifest.tools['number']}"
                except SDExportError as error:
                    what = GAVE_UP if GAVE_UP in str(error) else f"error: {error}"
                with lock:
                    found[what] += 1

        loaders = [threading.Thread(target=load) for _ in range(LOADERS)]
        for loader in loaders:
            loader.start()
        replaced = 0
        while any(loader.is_alive() for loader in loaders):
            replaced += 1
            with package_folder(destination, force=True) as folder:
                shutil.copytree(both[replaced % 2], folder, dirs_exist_ok=True)
            time.sleep(PAUSE)
        left = set(Path(work).iterdir()) - {destination, *both}
    whole = sum(found[what] for what in found if what == GAVE_UP or what.startswith("package "))
    figures = {"writers": 1, "writes": replaced, "reads": found.total(), "contents": len(found)}
    figures |= {"damaged": found.total() - whole, "gave_up": found[GAVE_UP]}
    return figures | {"left_over": len(left)}


def _other_package(folder: Path, number: int) -> Path:
    """A package that says its number, with a file of another size than in the other one."""
    shutil.copytree(PACKAGE_DIR, folder)
    config = folder / "unet" / "config.json"
    text = config.read_text(encoding="utf-8").replace("{", "{" + " " * number, 1)
    config.write_text(text, encoding="utf-8")
    edit_manifest(folder, lambda manifest: manifest["tools"].update(number=str(number)))
    accept_files(folder)
    return folder


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "eight threads save to one path": threads_save,
    "eight processes save to one path": processes_save,
    "a package is replaced while it is loaded": package_is_replaced,
}
