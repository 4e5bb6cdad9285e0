"""Graphs that `sdexport build` prepared for ONNX Runtime: whether one fits, and its mapped weights.

A prepared graph is optimised, and its weights lie in the file as the kernels of one kind of
processor read them. To open it is to map that file: nothing is computed or copied, and its pages
can be given back at any time, as they are read again from the file.
"""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from sdexport.engines.cache.processor import instructions
from sdexport.engines.cache.sidecar import Sidecar
from sdexport.engines.errors import EngineError

Range = tuple[int, int]
"""First address, and the one behind the last."""
BACKEND = "onnxruntime"
MULTIPLES = "multiples"
"""The option of a sidecar: of what number height and width of an input must be multiples."""
BEFORE = "before"
"""The option that names the input of which what depends on it alone is computed by another graph,
once for as long as that input stays the same."""
_PROCESS = Path("/proc/self")
_INSTRUCTIONS = re.compile(r"avx|sse4|fma$|f16c|amx|asimd|sve|sme\d*$|bf16|i8mm|neon")
_DONTNEED = 4


@cache
def target() -> dict[str, str]:
    """What the weights are laid out for: the architecture and the instructions that kernels use."""
    used = sorted({word for word in instructions() if _INSTRUCTIONS.match(word)})
    return {
        "machine": platform.machine(),
        "instructions": " ".join(used) or platform.processor() or "not known",
    }


def differences(sidecar: Sidecar, *, digest: str | None, version: str | None) -> list[str]:
    """What keeps a prepared graph from standing for an ONNX file here, in words.

    Args:
      digest: sdexport.engines.cache.sidecar.model_digest of the file. version: of ONNX Runtime.
        None: not compared.
    """
    found = []
    if digest not in (None, sidecar.onnx_sha256):
        found.append("it was built from another ONNX file")
    if sidecar.backend != BACKEND:
        found.append(f"it was built for {sidecar.backend}")
    if version not in (None, sidecar.library_version):
        found.append(f"it was built with ONNX Runtime {sidecar.library_version}, here is {version}")
    if dict(sidecar.target) != target():
        found.append("it was built on another kind of processor")
    return found


def multiples(sidecar: Sidecar) -> dict[str, int]:
    """By input, the number of which its height and width must be multiples.

    Raises: EngineError: the sidecar says something else.
    """
    entries, known = sidecar.options.get(MULTIPLES) or {}, {spec.name for spec in sidecar.inputs}
    if not isinstance(entries, dict) or not entries.keys() <= known:
        raise EngineError(f"{sidecar.component}: '{MULTIPLES}' in its sidecar are of no input")
    if not all(isinstance(number, int) and number > 0 for number in entries.values()):
        raise EngineError(f"{sidecar.component}: '{MULTIPLES}' in its sidecar are no numbers")
    return entries


def given_before(sidecar: Sidecar) -> str | None:
    """The input of which a graph of its own computes what depends on it alone, if there is one."""
    name = sidecar.options.get(BEFORE)
    return name if isinstance(name, str) else None


def before_path(plan: Path) -> Path:
    """Where the graph lies that computes what depends on one input alone."""
    return plan.with_name(f"{plan.stem}.{BEFORE}{plan.suffix}")


def data_path(plan: Path) -> Path:
    """Where the weights of a prepared graph lie."""
    return plan.with_name(f"{plan.name}_data")


def mapped_ranges(files: Iterable[Path]) -> set[Range]:
    """Addresses at which files are mapped into this process; none where that cannot be told."""
    if sys.platform != "linux":
        return set()
    names, found = {str(file.resolve()) for file in files}, set()
    for line in (_PROCESS / "maps").read_text(encoding="utf-8", errors="replace").splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5] in names:
            start, end = (int(text, 16) for text in parts[0].split("-"))
            found.add((start, end))
    return found


def give_back(ranges: Iterable[Range], room: int | None = None) -> bool:
    """Let go of the memory of files that are mapped read-only; it is read again when needed.

    Args:
      ranges: of `mapped_ranges`, whose mappings the caller keeps alive meanwhile: what is mapped
        there instead would lose its content.
      room: bytes that suffice; None for all of them.
    Returns: whether this system can.
    """
    if sys.platform != "linux":
        return False
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    enough = None if room is None else _resident() - room
    for start, end in ranges:
        madvise(start, end - start, _DONTNEED)
        if enough is not None and _resident() <= enough:
            break
    return True


def _resident() -> int:
    """Bytes of files in this process's memory."""
    found = re.search(
        r"^RssFile:\s*(\d+) kB", (_PROCESS / "status").read_text(encoding="ascii"), re.MULTILINE
    )
    return int(found[1]) * 1024 if found else 0
