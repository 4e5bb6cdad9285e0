"""Packages whose files or manifest a test has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdexport.engines.files import sha256_of
from sdexport.runtime.packages.manifest import manifest_digest

Change = Callable[[dict[str, Any]], object]


def edit_manifest(folder: Path, change: Change) -> None:
    """Change the content of sdexport.json, and the digest with it."""
    path = folder / "sdexport.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    data["digest"] = manifest_digest(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def edit_manifest_text(folder: Path, old: str, new: str) -> None:
    """Replace the first `old` in the text of sdexport.json, and leave its digest as it is."""
    path = folder / "sdexport.json"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def as_optimum_folder(folder: Path) -> Path:
    """Take from a package what Optimum does not write, also the exporter's notes in the graphs."""
    (folder / "sdexport.json").unlink()
    shutil.rmtree(folder / "reference")
    for path in folder.glob("*/*.onnx"):
        if path.name != "model.onnx":
            path.unlink()
    remove_notes(folder)
    return folder


def remove_notes(folder: Path) -> None:
    """Take the exporter's notes out of the graphs of a package, such as the family."""
    for path in folder.glob("*/model.onnx"):
        replace_notes(path, {})


def replace_notes(path: Path, notes: Mapping[str, str]) -> None:
    """Give a graph the metadata that an exporter writes."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:]
    for key, value in notes.items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def accept_files(folder: Path, *names: str) -> None:
    """Write the sizes and hashes of files to sdexport.json, as somebody who altered them would.

    Args:
      names: paths within the package; default every file that the manifest lists.
    """

    def accept(data: dict[str, Any]) -> None:
        components = (record for c in data["components"].values() for record in c["files"])
        for record in (*data["files"], *components):
            if not names or record["path"] in names:
                path = folder / record["path"]
                record["size"], record["sha256"] = path.stat().st_size, sha256_of(path)

    edit_manifest(folder, accept)
