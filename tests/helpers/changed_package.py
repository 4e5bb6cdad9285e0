"""Packages whose files or manifest a test has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
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
