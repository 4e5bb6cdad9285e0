"""The package that is shipped with sdexport is what an export of the demo checkpoint writes.

`make demo-package` writes it again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import Package, export
from sdexport.demo_model import MODEL_DIR, PACKAGE_DIR
from sdexport.verification.float32_outputs import DIFFERENCE, SCALE
from tests.tolerances import (
    FOUR_DIGITS_REL,
    OTHER_PROCESSOR_IMAGE_ABS,
    OTHER_PROCESSOR_REL,
    assert_close,
)

FROM_INSTALLED_VERSIONS = {"tools", "verification", "verified_with", "digest"}
"""Entries of the manifest that depend on the versions that are installed, and on the processor."""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh") / "package"
    export(MODEL_DIR, folder, precision="fp16", lora_inputs=True, controlnet_inputs=True)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


def is_reference(name: str) -> bool:
    return name.startswith("reference/")


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest's reproducible entries; of reference files only the names."""
    values = json.loads((folder / "sdexport.json").read_text(encoding="utf-8"))
    for record in values["files"]:
        if is_reference(record["path"]):
            del record["size"], record["sha256"]
    return {key: value for key, value in values.items() if key not in FROM_INSTALLED_VERSIONS}


def test_shipped_package_is_complete() -> None:
    graphs = Package.load(PACKAGE_DIR).graphs
    assert {"unet", "unet.lora", "unet.controlnet", "unet.adapters"} <= set(graphs)


def test_shipped_package_equals_a_fresh_export(fresh: Path) -> None:
    """Graphs, weights, configurations and tokenizer to the byte, and so is the manifest."""
    assert files(PACKAGE_DIR) == files(fresh)
    different = [
        name
        for name in files(fresh)
        if name != "sdexport.json"
        and not is_reference(name)
        and (PACKAGE_DIR / name).read_bytes() != (fresh / name).read_bytes()
    ]
    assert different == []
    shipped, new = manifest(PACKAGE_DIR), manifest(fresh)
    # fitted to the VAE's outputs and written with four digits
    colors = [np.array(each.pop("preview")) for each in (shipped, new)]
    assert_close(*colors, rel=FOUR_DIGITS_REL)
    assert shipped == new


def test_shipped_references_are_those_of_a_fresh_export(fresh: Path) -> None:
    """PyTorch sums in another order on another processor, so values differ a little there."""
    for path in sorted((fresh / "reference").iterdir()):
        with np.load(path) as new, np.load(PACKAGE_DIR / "reference" / path.name) as shipped:
            assert sorted(new) == sorted(shipped)
            for key in new:
                assert new[key].dtype == shipped[key].dtype, (path.name, key)
                if key.startswith(SCALE):
                    continue  # of the arrays with this prefix:
                if key.startswith(DIFFERENCE):
                    output = key.removeprefix(DIFFERENCE)
                    pair = [
                        each[f"output.{output}"] + each[key] * each[SCALE + output]
                        for each in (shipped, new)
                    ]
                    assert_close(*pair, rel=OTHER_PROCESSOR_REL)
                elif new[key].dtype == np.uint8:
                    assert_close(shipped[key], new[key], abs_=OTHER_PROCESSOR_IMAGE_ABS)
                elif new[key].dtype.kind == "f" and new[key].ndim:
                    assert_close(shipped[key], new[key], rel=OTHER_PROCESSOR_REL)
                else:
                    np.testing.assert_array_equal(shipped[key], new[key])
