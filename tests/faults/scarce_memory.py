"""Reading a file while one allocation of Python fails, in a process of its own for each.

CPython's own tests do this with `_testcapi.set_nomemory`, which not every build of Python has.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdexport.demo_model import PACKAGE_DIR
from sdexport.engines.cache.sidecar import Sidecar
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.runtime.images.loading import load_image
from sdexport.runtime.images.metadata import save_image
from sdexport.runtime.images.read_parameters import read_parameters
from sdexport.runtime.packages.package import Package
from sdexport.runtime.text.embeds_file import load_embeds
from sdexport.runtime.text.tokenizer import ClipTokenizer
from tests.faults.scenarios import SCENARIOS

SAME, MEMORY = "the same result", "MemoryError"
NOT_OURS = re.compile(
    r"TypeError: \w+: path should be string"
    r"|SystemError: .* returned NULL without setting an exception"
    r"|RuntimeError: can't allocate read lock"
    r"|.*error return without exception set"
    r"|InvalidArgumentError: .* cannot be read as an image: "
    r"(<.*> returned NULL without setting an exception|could not create decoder object)"
)
"""What Python, NumPy and Pillow say instead when one of their own allocations fails."""
_SECONDS = 30
_MANY = 1000
_REPORT = 400


def _package(folder: Path) -> str:
    package = Package.load(PACKAGE_DIR, verify=False)
    return package.manifest.to_json() + str(package.scheduler_config)


def _tokenizer(folder: Path) -> str:
    return str(ClipTokenizer.from_folder(PACKAGE_DIR / "tokenizer").encode("a small red circle"))


def _onnx(folder: Path) -> str:
    return str(graph_specs(PACKAGE_DIR / "unet" / "model.onnx"))


def _embeddings(folder: Path) -> str:
    found = load_embeds(folder / "prompt.npz")
    return f"{found.meta} {found.prompt_embeds.sum()}"


def _image(folder: Path, suffix: str) -> str:
    return str(np.asarray(load_image(str(folder / f"a{suffix}"))).sum())


def _settings(folder: Path) -> str:
    return str(read_parameters(folder / "settings.png"))


def _sidecar(folder: Path) -> str:
    return Sidecar.read(folder / "engines" / "unet.plan").to_json()


READERS: dict[str, Callable[[Path], str]] = {
    "package": _package,
    "tokenizer": _tokenizer,
    "ONNX file": _onnx,
    "embeddings": _embeddings,
    "PNG": lambda folder: _image(folder, ".png"),
    "JPEG": lambda folder: _image(folder, ".jpg"),
    "WebP": lambda folder: _image(folder, ".webp"),
    "sidecar": _sidecar,
    "settings of an image": _settings,
}


def prepare(folder: Path) -> None:
    """Write the files that the readers read."""
    for name in ("image a.png", "image a.jpg", "image a.webp", "embeddings", "engine"):
        SCENARIOS[name].prepare(folder)
    image = Image.new("RGB", (64, 64))
    image.info["parameters"] = "a star\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1"
    save_image(image, folder / "settings.png")


class Reader:
    """A reader of files in `folder`, which is called once here: imports and caches are done."""

    def __init__(self, name: str, folder: Path) -> None:
        self._read, self._folder = READERS[name], folder
        self._expected = self._read(folder)
        self._set = pytest.importorskip("_testcapi").set_nomemory
        self._reset = pytest.importorskip("_testcapi").remove_mem_hooks

    def outcome(self, start: int, stop: int) -> str:
        """How the reader ends when the allocations from `start` to before `stop` fail.

        Returns: SAME, MEMORY, or what else happened: an error, a crash, a hang, another result.
        """
        output, result = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(output)
            self._in_child(start, stop, result)
        os.close(result)
        until = time.monotonic() + _SECONDS
        with os.fdopen(output, "rb") as stream:
            os.set_blocking(stream.fileno(), False)
            said = b""
            while (chunk := stream.read()) != b"" and time.monotonic() < until:
                said += chunk or b""
                time.sleep(0 if chunk else 0.001)
        hangs = time.monotonic() >= until
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL) if hangs else None
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if hangs:
            return "it hangs"
        return said.decode() if status == 0 else f"exit status {status}: {said.decode()}"

    def _in_child(self, start: int, stop: int, result: int) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        text = SAME
        self._set(start, stop)
        try:
            found = self._read(self._folder)
            self._reset()
            text = text if found == self._expected else f"another result: {found}"
        except MemoryError:
            self._reset()
            text = MEMORY
        except BaseException as error:  # noqa: BLE001  the parent reports it
            self._reset()
            text = f"{type(error).__name__}: {error}"
        os.write(result, text.encode(errors="replace")[:_REPORT])
        os._exit(0)

    def count(self) -> int:
        """About how many allocations a call makes: the last that can fail."""
        low, high = 1, 2
        while self.outcome(high, high + _MANY) != SAME:
            low, high = high, 2 * high
        while high - low > max(1, high // 50):
            middle = (low + high) // 2
            low, high = (
                (low, middle) if self.outcome(middle, middle + _MANY) == SAME else (middle, high)
            )
        return high
