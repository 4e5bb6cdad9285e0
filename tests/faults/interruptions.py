"""What signals interrupt: commands that are about to do something which takes long."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from sdexport.demo_model import MODEL_DIR, PACKAGE_DIR
from sdexport.runtime.packages.key_files import write_key_pair
from tests.faults.interrupted_commands import PROGRAM
from tests.faults.slow_graphs import slow_down
from tests.faults.terminal import Terminal, terminal
from tests.helpers.changed_package import edit_manifest

PATIENCE = 120.0
"""Seconds to wait for anything."""
HUGE = 64 * 2**30
"""Bytes of a file that is hashed, all of them holes."""
ANNOUNCED = """
import pathlib
import {module} as module

function = module.{function}

def announced(*arguments, **options):
    if {condition}:
        pathlib.Path({mark!r}).touch()
    return function(*arguments, **options)

module.{function} = announced
"""
"""Creates a file when a function is called."""
_IS_HUGE = "__import__('os').fstat(arguments[0].fileno()).st_size > 2**33"
SLOW_DISK = """
import hashlib, pathlib
import {module} as module

def slow(descriptor):
    pathlib.Path({mark!r}).touch()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # which no signal ends

module.os.fsync = slow
"""


@dataclass(frozen=True)
class Interruption:
    """A command, and when the signal is sent.

    program: the code that runs it. reached: whether the moment has come. seconds: to wait then.
    watched: folders in which it must leave nothing new but whole images.
    """

    arguments: Sequence[object]
    program: str
    reached: Callable[[], bool]
    seconds: float = 0.5
    watched: tuple[Path, ...] = ()


def announced(mark: Path, module: str, function: str, condition: str = "True") -> str:
    """The command line, which creates `mark` before it calls a function of sdexport."""
    places = {"module": module, "function": function, "condition": condition, "mark": str(mark)}
    return ANNOUNCED.format(**places) + PROGRAM


def _slow_graph(how: str, backend: str, command: str, work: Path) -> Interruption:
    package = shutil.copytree(PACKAGE_DIR, work / "package")
    slow_down(package, how)
    mark, out = work / "mark", work / "out"
    out.mkdir()
    # engines fold constants when they open a graph
    where = {
        "fold": ("sdexport.runtime.component_sessions", "open_component", "'unet' in arguments"),
    }.get(how, ("sdexport.engines.session", "check_feeds", "arguments[0] == 'unet'"))
    arguments: list[object] = [command, package, "--backend", backend]
    if command == "generate":
        arguments += ["a star", "--steps", 3, "-o", out / "a.png", "-n", 2]
    return Interruption(arguments, announced(mark, *where), mark.exists, watched=(out, package))


def _hashing(command: str, work: Path) -> Interruption:
    """A package with a file of 64 GB, whose hash is wrong."""
    package = shutil.copytree(PACKAGE_DIR, work / "package")
    name = "text_encoder/model.onnx_data"
    os.truncate(package / name, HUGE)

    def enlarge(manifest: dict[str, Any]) -> None:
        for record in manifest["components"]["text_encoder"]["files"]:
            if record["path"] == name:
                record["size"] = HUGE

    edit_manifest(package, enlarge)
    mark, out = work / "mark", work / "out"
    out.mkdir()
    further: list[object] = ["--ignore-memory"]
    if command == "generate":
        further = ["a star", "-o", out / "a.png"]
    program = announced(mark, "sdexport.engines.cache.hash_check", "_digest", _IS_HUGE)
    if command == "sign":
        write_key_pair(work / "my.key", None)
        further = ["--key", work / "my.key"]
    return Interruption([command, package, *further], program, mark.exists, watched=(out, package))


def _many_prompts(work: Path) -> Interruption:
    """A thousand images, of which at least three were written."""
    out = work / "out"
    out.mkdir()
    prompts = work / "prompts.txt"
    prompts.write_text("a star\n" * 1000)
    arguments = ["generate", PACKAGE_DIR, "--prompts", prompts, "-o", out, "--steps", 1]
    return Interruption(
        arguments, PROGRAM, lambda: len(list(out.glob("*.png"))) >= 3, 0.05, watched=(out,)
    )


def _saving(work: Path) -> Interruption:
    """An image of which the disk does not say that it has it; an older one is there."""
    out, mark = work / "out", work / "mark"
    out.mkdir()
    program = SLOW_DISK.format(module="sdexport.engines.files", mark=str(mark)) + PROGRAM
    arguments = ["generate", PACKAGE_DIR, "a star", "-o", out / "a.png", "--steps", 1]
    return Interruption(arguments, program, mark.exists, watched=(out,))


def _building(work: Path) -> Interruption:
    engines = work / "engines"
    arguments = ["build", PACKAGE_DIR, "--backend", "onnxruntime", "--component", "unet"]
    return Interruption(
        [*arguments, "--engine-dir", engines],
        PROGRAM,
        lambda: any(engines.rglob(".unet.*.part")),
        0.2,
        watched=(engines,),
    )


def _tracing(work: Path) -> Interruption:
    mark, out = work / "mark", work / "out"
    out.mkdir()
    program = announced(mark, "sdexport.exporter", "trace", "'unet' in str(arguments)")
    return Interruption(
        ["export", MODEL_DIR, out / "package"], program, mark.exists, 0.7, watched=(out,)
    )


def _password(work: Path) -> Interruption:
    """A prompt for a password, which does not show what is typed."""
    out = work / "out"
    out.mkdir()
    mark = work / "mark"
    program = announced(mark, "click.termui", "hidden_prompt_func")
    return Interruption(
        ["sign", "--generate-key", out / "my.key"], program, mark.exists, 0.3, watched=(out,)
    )


INTERRUPTIONS: dict[str, Callable[[Path], Interruption]] = {
    "ONNX Runtime computes many nodes": lambda w: _slow_graph("loop", "onnxruntime", "generate", w),
    "ONNX Runtime computes one node": lambda w: _slow_graph("node", "onnxruntime", "generate", w),
    "ONNX Runtime opens a graph": lambda w: _slow_graph("fold", "onnxruntime", "generate", w),
    "OpenVINO computes": lambda w: _slow_graph("node", "openvino", "generate", w),
    "OpenVINO compiles": lambda w: _slow_graph("fold", "openvino", "generate", w),
    "verify computes": lambda w: _slow_graph("loop", "onnxruntime", "verify", w),
    "generate hashes 64 GB": lambda w: _hashing("generate", w),
    "verify hashes 64 GB": lambda w: _hashing("verify", w),
    "sign hashes 64 GB": lambda w: _hashing("sign", w),
    "generate --prompts": _many_prompts,
    "an image is saved to a disk that hangs": _saving,
    "a password is typed": _password,
    "a worker builds": _building,
    "PyTorch traces": _tracing,
}
"""What is interrupted, and how to prepare it in an empty folder."""


@dataclass(frozen=True)
class Interrupted:
    """How a command ended on a terminal. seconds: from the signal to its end."""

    seconds: float
    status: int
    text: str
    left_over: list[str]
    terminal: list[str]

    def problems(self, number: signal.Signals) -> list[str]:
        """What is wrong with it, besides the time."""
        found = [f"left {name}" for name in self.left_over]
        found += [f"leaves {what}" for what in self.terminal]
        if self.status != 128 + number:
            found.append(f"status {self.status}")
        said = "error" in self.text or "Traceback" in self.text
        return [*found, *([self.text] if said or found else [])]


def interrupt_on_terminal(name: str, number: signal.Signals, work: Path) -> Interrupted:
    """Prepare an interruption in an empty folder, and run it."""
    case = INTERRUPTIONS[name](work)
    before = _contents(case.watched)
    with terminal() as shown:
        process = subprocess.Popen(
            [sys.executable, "-c", case.program, *map(str, case.arguments)],
            stdin=shown.slave,
            stdout=shown.slave,
            stderr=shown.slave,
            preexec_fn=partial(os.login_tty, os.dup(shown.slave)),
        )
        try:
            _wait(case, process, shown)
            started = time.perf_counter()
            process.send_signal(number)
            status = process.wait(PATIENCE)
            seconds = time.perf_counter() - started
        finally:
            process.kill()
            process.wait()
        time.sleep(0.1)  # until what was written last is read
        problems, text = shown.problems(), shown.text
    return Interrupted(seconds, status, text, _left_over(case.watched, before), problems)


def _wait(case: Interruption, process: subprocess.Popen[bytes], shown: Terminal) -> None:
    """Wait until it is time for the signal."""
    until = time.monotonic() + PATIENCE
    while not case.reached():
        assert process.poll() is None, f"the command ended too early: {shown.text}"
        assert time.monotonic() < until, "the command does not come so far"
        time.sleep(0.02)
    time.sleep(case.seconds)
    assert process.poll() is None, f"the command ended too early: {shown.text}"


def _left_over(folders: Sequence[Path], before: dict[Path, tuple[int, int]]) -> list[str]:
    """Names of files in folders that were not there before, or are not what they were.

    Images that are whole are expected.
    """
    found = [path.name for path in before if not path.exists()]
    for path, identity in _contents(folders).items():
        if path.suffix == ".png" and not path.name.startswith("."):
            with Image.open(path) as image:
                image.load()
        elif before.get(path) != identity:
            found.append(path.name)
    return found


def _contents(folders: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file and every hidden folder in folders."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() or path.name.startswith("."):
                found[path] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found
