"""Prepare what a borrowed GPU needs, for a machine that reaches no network.

    python -m benchmarks.gpu_kit --folder kit --piece-mb 36 [--verify]

That machine has Python, PyTorch for CUDA and the libraries in THERE; what it lacks is collected
here: wheels of this project and of others, the benchmark, its tests and the demo model. They are
compressed together and cut into pieces that can be carried. The calls to make are printed in their
order, with the seconds that they take, and written to calls.txt. Pieces stay in --place on that
machine between calls; each is checked when it arrives, and every file when all are there.

Code for other GPUs is left out of ONNX Runtime's library: 73 MB in place of 255 for 9.0.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import math
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_fatbin import keep_only
from benchmarks.gpu_plan import tasks
from benchmarks.gpu_program import chosen, expected_seconds
from benchmarks.gpu_unpack import MANIFEST, PIECE
from sdexport.engines.errors import InvalidArgumentError

ROOT = Path(__file__).parents[1]
PLATFORMS = (
    *("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_27_x86_64"),
    *("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"),
)
CARRIED = ("onnxruntime-gpu", "diffusers", "transformers", "onnx-ir", "importlib_metadata")
"""Wheels to carry, without what they require: THERE has that."""
THERE = ("torch", "numpy", "onnx", "onnxscript", "huggingface_hub", "tokenizers", "safetensors")
LEFT_OUT = ("libonnxruntime_providers_tensorrt.so",)
CHECKOUT = ("benchmarks", "tests", "pyproject.toml", "constraints.txt", "docs/file-kinds.md")
"""Of this repository, next to the wheel: the benchmark and the tests marked `gpu`."""
DEMO_CHECKPOINT = "sdexport/demo_model/model"
"""Wheels do not contain it."""
START_SECONDS, CALL_SECONDS, UNPACK_SECONDS = 75, 15, 25
"""Estimates: starting the machine; carrying a piece; and with the last one, unpacking."""
MARGIN = 20
"""Seconds between the budget of the benchmark and the limit of a call."""


@dataclass(frozen=True)
class Call:
    """One call on the other machine. carry: a folder to bring along, or ""."""

    seconds: float
    carry: str
    command: str


def collect(args: argparse.Namespace, folder: Path) -> dict[str, bytes]:
    """Every file that the other machine needs, by its path there: below site/ or tree/."""
    wheels = [*_download(args, folder), _own_wheel(folder)]
    files: dict[str, bytes] = {}
    for wheel in wheels:
        for name, data in _unzipped(wheel, args.capability):
            if files.setdefault(f"site/{name}", data) != data:
                raise InvalidArgumentError(f"two wheels hold {name}, with different content")
    for path in _tracked(DEMO_CHECKPOINT):
        files[f"site/{path}"] = (ROOT / path).read_bytes()
    for path in _tracked(*CHECKOUT):
        if not path.startswith("benchmarks/results/"):
            files[f"tree/{path}"] = (ROOT / path).read_bytes()
    return files


def cut(files: Mapping[str, bytes], folder: Path, size: int) -> list[Path]:
    """Compress the files and write the pieces, each in a folder with what unpacks it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    packed = lzma.compress(archive.getvalue(), preset=3)
    parts = [packed[i : i + size] for i in range(0, len(packed), size)]
    manifest = {
        "kit": _sha256(packed)[:16],
        "pieces": [_sha256(part) for part in parts],
        "files": {name: _sha256(data) for name, data in sorted(files.items())},
    }
    folders = []
    for number, part in enumerate(parts, 1):
        target = folder / f"{number:02}"
        target.mkdir(parents=True)
        (target / PIECE).write_bytes(part)
        text = json.dumps(manifest | {"number": number})
        (target / MANIFEST).write_text(text, encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name("gpu_unpack.py"), target / "unpack.py")
        folders.append(target)
    return folders


def calls(pieces: Sequence[Path], args: argparse.Namespace) -> list[Call]:
    """The calls in their order: the pieces, then the benchmark until the time is used up."""
    found = []
    for number, piece in enumerate(pieces, 1):
        seconds = START_SECONDS * (number == 1) + CALL_SECONDS
        seconds += UNPACK_SECONDS * (number == len(pieces))
        command = f"{args.python} {piece}/unpack.py --place {args.place}"
        found.append(Call(seconds, str(piece), command))
    left = 60 * args.minutes - sum(call.seconds for call in found) - MARGIN
    while left > MARGIN + 60:
        seconds = min(left, args.call_seconds)
        found.append(Call(seconds, "", _benchmark(args, seconds - MARGIN)))
        left -= seconds
    return found


def _benchmark(args: argparse.Namespace, budget: float) -> str:
    place = args.place
    copy = f" --copy {args.results}" if args.results else ""
    return (
        f"cd {place}/kit/tree && PYTHONPATH={place}/kit/site {args.python} -m benchmarks.gpu "
        f"--work {place}/work --json {place}/gpu.json{copy} --budget {budget:g}"
    )


def as_text(found: Sequence[Call], seconds_needed: float) -> str:
    """The calls as a table, and whether the default plan fits."""
    lines, end = ["call seconds ends at"], 0.0
    for number, call in enumerate(found, 1):
        end += call.seconds
        lines.append(f"{number:4} {call.seconds:7g} {end:7g}  carry: {call.carry or 'nothing'}")
        lines.append(f"     {call.command}")
    room = sum(call.seconds - MARGIN for call in found if not call.carry)
    fits = "fits" if seconds_needed <= room else "does not fit: the last tasks are left out"
    return "\n".join(
        [*lines, f"The default plan takes {seconds_needed:.0f} s of these {room:.0f} s: it {fits}."]
    )


def verify(pieces: Sequence[Path], files: Mapping[str, bytes]) -> None:
    """Make the calls here, the last piece first, and compare every file; run the plan from there.

    Raises: CalledProcessError: a call failed. InvalidArgumentError: a file is not what it was.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for piece in reversed(pieces):
            command = [sys.executable, str(piece / "unpack.py"), "--place", str(place)]
            subprocess.run(command, check=True)
        for name, data in files.items():
            if (place / "kit" / name).read_bytes() != data:
                raise InvalidArgumentError(f"{name} is not what it was")
        line = [sys.executable, "-m", "benchmarks.gpu", "--plan", "--work", scratch]
        subprocess.run(
            [*line, "--json", str(place / "gpu.json")],
            check=True,
            cwd=place / "kit" / "tree",
            env={"PYTHONPATH": str(place / "kit" / "site"), "PATH": ""},
            stdout=subprocess.DEVNULL,
        )


def _download(args: argparse.Namespace, folder: Path) -> list[Path]:
    """The wheels of others, of the versions that constraints.txt pins."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {_normal(name): version for name, version in (line.split("==") for line in lines)}
    pins["onnxruntime-gpu"] = pins["onnxruntime"]
    names = map(_normal, args.package)
    wanted = [f"{name}=={pins[name]}" if name in pins else name for name in names]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    command += ["--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", args.python_version]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, *wanted], check=True)
    return sorted(folder.glob("*.whl"))


def _normal(name: str) -> str:
    """The name of a package as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _own_wheel(folder: Path) -> Path:
    target = folder / "own"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", str(target), str(ROOT)], check=True)
    (wheel,) = target.glob("*.whl")
    return wheel


def _unzipped(wheel: Path, capability: int) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = entry.filename
            if entry.is_dir() or name.rpartition("/")[2] in LEFT_OUT:
                continue
            data = archive.read(entry)
            if capability and ".so" in name:
                content = bytearray(data)
                if keep_only(content, capability):
                    data = bytes(content)
            yield name, data


def _tracked(*paths: str) -> list[str]:
    command = ["git", "ls-files", "-z", "--", *paths]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    return [name for name in listed.decode().split("\0") if name]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.gpu_kit",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the pieces; must not exist")
    parser.add_argument("--piece-mb", type=float, default=50.0, help="largest piece, in 1e6 bytes")
    parser.add_argument("--place", default="/tmp/sdexport-gpu", help="a folder that stays there")
    parser.add_argument("--results", default="", help="a folder there whose files come back")
    parser.add_argument("--python", default="python3", help="the Python there that has PyTorch")
    parser.add_argument("--python-version", default="3.12")
    parser.add_argument(
        "--compute-capability",
        default="9.0",
        help="of the GPU; code for others is left out of libraries; 'all' keeps it",
    )
    parser.add_argument("--minutes", type=float, default=15.0, help="that the machine is there")
    parser.add_argument("--call-seconds", type=float, default=600.0, help="limit of one call")
    parser.add_argument("--package", nargs="+", default=CARRIED, help="wheels to carry")
    parser.add_argument("--verify", action="store_true", help="make the calls here, and compare")
    args = parser.parse_args(arguments)
    if not (math.isfinite(args.piece_mb) and args.piece_mb > 0):
        parser.error(f"--piece-mb must be above 0, got {args.piece_mb:g}")
    form = re.fullmatch(r"(\d+)\.(\d)", args.compute_capability)
    if form is None and args.compute_capability != "all":
        parser.error(f"--compute-capability is such as 9.0, or all; got {args.compute_capability}")
    args.capability = int(form[1] + form[2]) if form else 0
    return args


def main() -> None:
    args = parse()
    try:
        args.folder.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as scratch:
            files = collect(args, Path(scratch))
        pieces = cut(files, args.folder, int(args.piece_mb * 1e6))
        if args.verify:
            verify(pieces, files)
    except (InvalidArgumentError, OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"error: {error}") from None
    needed = max(end for _, end in expected_seconds(chosen(tasks())))
    text = as_text(calls(pieces, args), needed)
    (args.folder / "calls.txt").write_text(text + "\n", encoding="utf-8")
    total = sum((piece / PIECE).stat().st_size for piece in pieces)
    print(f"{len(files)} files, {total / 1e6:.0f} MB in {len(pieces)} pieces\n{text}")


if __name__ == "__main__":
    main()
