"""Puts the pieces of benchmarks.gpu_kit together; needs Python alone, and is carried with them.

    python3 unpack.py [--place FOLDER]

Run once for each piece, in any order, from wherever its folder is. The piece is copied to the
place, which must outlast the call; when all are there, the files are unpacked and checked.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import os
import shutil
import sys
import tarfile
import time
from pathlib import Path

MANIFEST, PIECE, READY = "kit.json", "piece", "ready.json"


class KitError(Exception):
    """A piece or a file is not what the kit lists; the message says which."""


def take(folder: Path, place: Path) -> list[int]:
    """Copy the piece in a folder to the place; returns the numbers of those still missing.

    Raises: KitError: the piece is damaged, or of another kit than those in the place.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    number = int(manifest["number"])
    data = (folder / PIECE).read_bytes()
    if _sha256(data) != manifest["pieces"][number - 1]:
        raise KitError(f"piece {number} is damaged: its hash is not the one that the kit lists")
    store = place / "pieces" / manifest["kit"]
    store.mkdir(parents=True, exist_ok=True)
    _write(store / str(number), data)
    names = range(1, len(manifest["pieces"]) + 1)
    missing = [n for n in names if not (store / str(n)).is_file()]
    if not missing:
        _unpack(manifest, store, place)
    return missing


def _unpack(manifest: dict[str, object], store: Path, place: Path) -> None:
    """Unpack all pieces into `place`/kit, and check every file."""
    hashes, files = manifest["pieces"], manifest["files"]
    assert isinstance(hashes, list) and isinstance(files, dict)
    parts = []
    for number, expected in enumerate(hashes, 1):
        data = (store / str(number)).read_bytes()
        if _sha256(data) != expected:
            (store / str(number)).unlink()
            raise KitError(f"piece {number} was damaged in {store}; carry it again")
        parts.append(data)
    fresh = place / "kit.new"
    shutil.rmtree(fresh, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(b"".join(parts)))) as archive:
        archive.extractall(fresh, filter="data")
    found = {p.relative_to(fresh).as_posix(): p for p in fresh.rglob("*") if p.is_file()}
    for name in sorted(files.keys() ^ found.keys()):
        raise KitError(f"{name} is {'missing' if name in files else 'not listed'} after unpacking")
    for name, expected in files.items():
        if _sha256(found[name].read_bytes()) != expected:
            raise KitError(f"{name} is damaged after unpacking")
    shutil.rmtree(place / "kit", ignore_errors=True)
    fresh.rename(place / "kit")
    _write(place / READY, json.dumps({"kit": manifest["kit"], "files": len(files)}).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--place", type=Path, default=Path("/tmp/sdexport-gpu"))
    args = parser.parse_args()
    started = time.monotonic()
    try:
        missing = take(Path(__file__).resolve().parent, args.place)
    except (KitError, OSError, ValueError, KeyError, lzma.LZMAError, tarfile.TarError) as error:
        sys.exit(f"error: {error}")
    state = f"still missing: {', '.join(map(str, missing))}" if missing else "complete and checked"
    print(f"{args.place}: {state} ({time.monotonic() - started:.1f} s)")


if __name__ == "__main__":
    main()
