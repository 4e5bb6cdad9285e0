"""Memory that is available: of the machine, of cgroups of both versions, of the process's limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sdexport.engines import available_memory
from sdexport.engines.available_memory import available_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
GB = 10**9


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB available, 1 GB of free swap and no cgroup."""
    monkeypatch.setattr(available_memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(available_memory, "_CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    kilobytes = {"MemTotal": 16 * GB, "MemAvailable": 8 * GB, "SwapFree": GB}
    lines = [f"{name}:  {size // 1024} kB\n" for name, size in kilobytes.items()]
    (tmp_path / "proc" / "meminfo").write_text("".join(lines) + "HugePages_Total:  0\n")
    return tmp_path


def add_cgroup(folder: Path, names: tuple[str, str, str], limit: object, used: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {GB // 2}\n")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_machine_without_cgroups(system: Path) -> None:
    kilobytes = 8 * GB // 1024 + GB // 1024
    assert available_bytes() == kilobytes * 1024


def test_cgroup_version_2_limits_at_any_level(system: Path) -> None:
    (system / "proc" / "self" / "cgroup").write_text("0::/outer/inner\n")
    add_cgroup(system / "cgroup" / "outer" / "inner", V2, "max", GB)
    add_cgroup(system / "cgroup" / "outer", V2, 4 * GB, 2 * GB)
    assert available_bytes() == 2 * GB + GB // 2, "cached files count as free"


def test_cgroup_version_1_inside_of_a_container(system: Path) -> None:
    """The path is that of the host, and the files are at the root of the mount."""
    (system / "proc" / "self" / "cgroup").write_text("5:cpu:/x\n4:memory:/docker/abc\n0::/\n")
    add_cgroup(system / "cgroup" / "memory", V1, 3 * GB, 2 * GB)
    assert available_bytes() == GB + GB // 2
    add_cgroup(system / "cgroup" / "memory", V1, GB, 4 * GB)
    assert available_bytes() == 0, "never below zero"


def test_system_that_promises_no_more_than_it_has(system: Path) -> None:
    meminfo = system / "proc" / "meminfo"
    meminfo.write_text(meminfo.read_text() + "CommitLimit:  5000 kB\nCommitted_AS:  3000 kB\n")
    (system / "proc" / "sys" / "vm").mkdir(parents=True)
    (system / "proc" / "sys" / "vm" / "overcommit_memory").write_text("0\n")
    assert available_bytes() == 8 * GB // 1024 * 1024 + GB // 1024 * 1024
    (system / "proc" / "sys" / "vm" / "overcommit_memory").write_text("2\n")
    assert available_bytes() == 2000 * 1024


@pytest.mark.parametrize("text", ["", "garbage", "MemAvailable: many kB", "MemTotal:  8 kB"])
def test_damaged_files_mean_unknown(system: Path, text: str) -> None:
    (system / "proc" / "meminfo").write_text(text)
    (system / "proc" / "self" / "cgroup").write_text("4:memory\n")
    assert available_bytes() is None


@pytest.mark.parametrize(("limit", "field"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_limits_of_the_process(limit: str, field: str) -> None:
    code = (
        "import resource; from sdexport.engines.available_memory import available_bytes\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        f"used = 1024 * next(int(line.split()[1]) for line in lines if '{field}' in line)\n"
        f"resource.setrlimit(resource.{limit}, (used + 10**8,) * 2); print(available_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.5 * 10**8 < int(done.stdout) <= 10**8
