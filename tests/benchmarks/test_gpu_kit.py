"""What is carried to a borrowed GPU: less code, pieces, and how they are put together there."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_kit, gpu_unpack
from benchmarks.gpu_fatbin import MACHINE_CODE, MAGIC, PTX, keep_only
from benchmarks.gpu_plan import tasks
from benchmarks.gpu_program import chosen, expected_seconds
from benchmarks.gpu_unpack import KitError, take

FILES = {
    "site/a/__init__.py": b"A = 1\n",
    "site/a.dist-info/METADATA": "Näme: a\n".encode(),
    "tree/empty": b"",
    "tree/large": random.Random(0).randbytes(3000),
}


def entry(capability: int, content: bytes, kind: int = MACHINE_CODE) -> bytes:
    head = struct.pack("<HHIQ", kind, 0x101, 64, len(content)).ljust(28, b"\1")
    return (head + struct.pack("<I", capability)).ljust(64, b"\2") + content


def fat(*entries: bytes) -> bytes:
    content = b"".join(entries)
    return MAGIC + struct.pack("<HHQ", 1, 16, len(content)) + content


OLD, NEW, OTHER = entry(80, b"old" * 8), entry(90, b"new" * 16), entry(120, b"other" * 8)
TEXT = entry(90, b".version", PTX)


def test_library_keeps_the_code_of_one_gpu() -> None:
    before = b"code" + fat(OLD, NEW, OTHER) + b"between" + fat(TEXT, OTHER) + b"end"
    data = bytearray(before)
    assert keep_only(data, 90) == len(OLD) + 2 * len(OTHER)
    after = b"code" + fat(NEW).ljust(len(fat(OLD, NEW, OTHER)), b"\0") + b"between"
    assert bytes(data) == after + fat(TEXT).ljust(len(fat(TEXT, OTHER)), b"\0") + b"end"
    assert keep_only(data, 90) == 0, "nothing is left to remove"


def test_library_keeps_earlier_minor_versions_of_the_gpu() -> None:
    ampere, ada = entry(86, b"ampere"), entry(89, b"ada")
    data = bytearray(fat(OLD, ampere, ada, NEW))
    keep_only(data, 86)
    assert data.startswith(fat(OLD, ampere)) and b"ada" not in data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC,
        fat(OLD, OTHER),  # nothing for this GPU: it would not start at all
        fat(NEW),
        fat(OLD, NEW)[:-1],
        MAGIC + struct.pack("<HHQ", 1, 16, 2**63),
        MAGIC + struct.pack("<HHQ", 2, 16, 8) + bytes(8),
        MAGIC + struct.pack("<HHQ", 1, 16, 8) + bytes(8),
        MAGIC + struct.pack("<HHQ", 1, 16, 64) + struct.pack("<HHIQ", 2, 1, 0, 0).ljust(64, b"\0"),
        fat(NEW[:-1], OLD),
    ],
)
def test_what_is_no_fat_binary_stays_as_it_is(data: bytes) -> None:
    changed = bytearray(data)
    assert keep_only(changed, 90) == 0 and bytes(changed) == data


@pytest.fixture
def pieces(tmp_path: Path) -> list[Path]:
    return gpu_kit.cut(FILES, tmp_path / "kit", 1000)


def test_pieces_arrive_in_any_order(pieces: list[Path], tmp_path: Path) -> None:
    place = tmp_path / "there"
    assert len(pieces) > 3 and all((p / "piece").stat().st_size <= 1000 for p in pieces)
    assert take(pieces[-1], place) == list(range(1, len(pieces)))
    assert take(pieces[-1], place) == list(range(1, len(pieces))), "carried twice"
    for piece in pieces[:-1]:
        missing = take(piece, place)
    assert missing == []
    kit = place / "kit"
    found = {p.relative_to(kit).as_posix(): p.read_bytes() for p in kit.rglob("*") if p.is_file()}
    assert found == FILES and (place / "ready.json").exists()
    assert take(pieces[0], place) == [], "a machine that is still there is made ready again"


def test_damaged_pieces_are_named(pieces: list[Path], tmp_path: Path) -> None:
    place = tmp_path / "there"
    for piece in pieces[:-1]:
        take(piece, place)
    content = (pieces[-1] / "piece").read_bytes()
    for wrong in (b"", content[:-1], content[:-1] + b"x", content + b"x"):
        (pieces[-1] / "piece").write_bytes(wrong)
        with pytest.raises(KitError, match=f"piece {len(pieces)} is damaged"):
            take(pieces[-1], place)
    (pieces[-1] / "piece").write_bytes(content)
    (stored,) = (place / "pieces").iterdir()
    (stored / "2").write_bytes(b"half")
    with pytest.raises(KitError, match="piece 2 was damaged in"):
        take(pieces[-1], place)
    assert not (place / "kit").exists() and take(pieces[1], place) == []


def test_pieces_of_two_kits_are_not_mixed(pieces: list[Path], tmp_path: Path) -> None:
    others = gpu_kit.cut(FILES | {"tree/more": b"x" * 9}, tmp_path / "other", 1000)
    place = tmp_path / "there"
    for piece in (*pieces[1:], others[0]):
        missing = take(piece, place)
    assert missing == list(range(2, len(others) + 1))


def test_files_that_are_not_what_the_kit_lists_are_named(
    pieces: list[Path], tmp_path: Path
) -> None:
    for change, message in (
        ({"tree/empty": "0" * 64}, "tree/empty is damaged after unpacking"),
        ({"tree/none": "0" * 64}, "tree/none is missing after unpacking"),
    ):
        for piece in pieces:
            manifest = json.loads((piece / "kit.json").read_text(encoding="utf-8"))
            manifest["files"] |= change
            (piece / "kit.json").write_text(json.dumps(manifest), encoding="utf-8")
        with pytest.raises(KitError, match=message):
            for piece in pieces:
                take(piece, tmp_path / message)


def test_unpacking_as_a_program(pieces: list[Path], tmp_path: Path) -> None:
    place = tmp_path / "there"

    def call(piece: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", str(piece / "unpack.py"), "--place", str(place)]
        return subprocess.run(command, capture_output=True, text=True)

    for piece in pieces[1:]:
        done = call(piece)
        assert done.returncode == 0 and "still missing: 1" in done.stdout
    assert "complete and checked" in call(pieces[0]).stdout
    (pieces[0] / "kit.json").write_text("{", encoding="utf-8")
    done = call(pieces[0])
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Trace" not in done.stderr


def arguments(*more: str) -> list[str]:
    return ["--folder", "kit", *more]


def test_calls_fit_the_time_and_name_what_to_carry() -> None:
    args = gpu_kit.parse(arguments("--results", "back", "--place", "/there"))
    folders = [Path("kit/01"), Path("kit/02"), Path("kit/03")]
    found = gpu_kit.calls(folders, args)
    assert [call.carry for call in found] == ["kit/01", "kit/02", "kit/03", "", ""]
    assert found[0].command == "python3 kit/01/unpack.py --place /there"
    assert sum(call.seconds for call in found) <= 15 * 60
    assert all(call.seconds <= 600 for call in found)
    budgets = [float(call.command.rpartition(" ")[2]) for call in found[3:]]
    assert [call.seconds - gpu_kit.MARGIN for call in found[3:]] == budgets
    assert "--json /there/gpu.json --copy back --budget" in found[3].command
    needed = max(end for _, end in expected_seconds(chosen(tasks())))
    assert f"The default plan takes {needed:.0f} s" in gpu_kit.as_text(found, needed)
    assert gpu_kit.as_text(found, needed).endswith("it fits.")
    assert gpu_kit.as_text(found, 5000.0).endswith("the last tasks are left out.")
    assert gpu_kit.calls(folders, gpu_kit.parse(arguments("--minutes", "1")))[3:] == []


@pytest.mark.parametrize(
    "more",
    [
        ("--piece-mb", "0"),
        ("--piece-mb", "nan"),
        ("--compute-capability", "90"),
        ("--compute-capability", "9.x"),
    ],
)
def test_arguments_of_the_kit_are_checked(more: tuple[str, ...], capsys: object) -> None:
    with pytest.raises(SystemExit):
        gpu_kit.parse(arguments(*more))


def test_what_unpacks_needs_python_alone() -> None:
    """It is copied away from this repository."""
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    path = gpu_unpack.__file__
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, path], capture_output=True, text=True, check=True
    )
    assert "sdexport" not in done.stdout and "numpy" not in done.stdout
