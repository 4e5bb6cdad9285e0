"""How much more memory this process can get: from the machine, its cgroups and its own limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Bytes that can be allocated without the system killing the process; None if unknown.

    On Linux the least of: available memory and free swap of the machine, the room that is left in
    each cgroup around the process (version 1 and 2, as containers set them; memory of cached files
    counts as free), the room below the process's limits of its address space and data, and what
    the system still promises where it promises no more than it has. Elsewhere the free physical
    memory, where the system tells it.
    """
    limits = list(_limits()) if sys.platform == "linux" else list(_physical())
    return max(min(limits), 0) if limits else None


def _limits() -> Iterator[int]:
    fields: dict[str, int] = {}
    with suppress(OSError, KeyError, ValueError):
        fields = _fields(_PROC / "meminfo")
        yield fields["MemAvailable"] + fields.get("SwapFree", 0)
    with suppress(OSError, KeyError, ValueError):
        if (_PROC / "sys" / "vm" / "overcommit_memory").read_text(encoding="ascii").strip() == "2":
            yield fields["CommitLimit"] - fields["Committed_AS"]
    yield from _cgroups()
    with suppress(ImportError):
        import resource

        for kind, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            with suppress(OSError, KeyError, ValueError):
                limit = resource.getrlimit(kind)[0]
                if limit != resource.RLIM_INFINITY:
                    yield limit - _fields(_PROC / "self" / "status")[used]


def _fields(path: Path) -> dict[str, int]:
    """Lines such as "MemFree:  8 kB", in bytes."""
    found = {}
    for line in path.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0]) * 1024
    return found


def _cgroups() -> Iterator[int]:
    """The room in every memory cgroup from that of the process up to the root."""
    with suppress(OSError, ValueError):
        for line in (_PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root, names = _CGROUPS, ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                root = _CGROUPS / "memory"
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            else:
                continue
            folder = root / path.lstrip("/")
            for each in (folder, *folder.parents):
                with suppress(OSError, ValueError, StopIteration):
                    yield _room(each, *names)
                if each == root:
                    break


def _room(folder: Path, limit: str, used: str, cached: str) -> int:
    """Raises: ValueError: there is no limit. OSError, StopIteration: this is no such cgroup."""
    limit_bytes, used_bytes = (
        int((folder / name).read_text(encoding="ascii")) for name in (limit, used)
    )
    lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    cached_bytes = next(int(line.split()[1]) for line in lines if line.startswith(f"{cached} "))
    return limit_bytes - used_bytes + cached_bytes


def _physical() -> Iterator[int]:
    """Free physical memory of Windows, and where the C library tells it."""
    with suppress(AttributeError, OSError, ValueError):
        if sys.platform == "win32":
            yield _windows()
        else:
            yield os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _windows() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "available", "page_total")),
            *((name, ctypes.c_ulonglong) for name in ("page_available", "virtual_total")),
            *((name, ctypes.c_ulonglong) for name in ("virtual_available", "extended")),
        ]

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined,unused-ignore]
    return int(status.page_available)
