"""`import sdexport`: which names it exports, and how little it loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sdexport
from sdexport.engines import errors

HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "click",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "polygraphy",
    "cuda",
    "scipy",
)
EXPORTS_WITH_TORCH = {"export", "export_adapter"}


def loaded(code: str, among: tuple[str, ...] = HEAVY) -> list[str]:
    """The modules of `among` that a fresh interpreter has loaded after running `code`."""
    code += f"\nimport sys; print(' '.join(n for n in {among!r} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_import_loads_only_the_standard_library() -> None:
    assert loaded("import sdexport", (*HEAVY, "numpy", "PIL")) == []


def test_names_that_need_no_torch_load_no_heavy_package() -> None:
    names = sorted(set(sdexport.__all__) - EXPORTS_WITH_TORCH)
    assert loaded(f"from sdexport import {', '.join(names)}") == []


def test_command_line_help_loads_no_heavy_package() -> None:
    code = (
        "from sdexport.cli import main\ntry: main(['generate', '--help'])\nexcept SystemExit: pass"
    )
    assert set(loaded(code)) <= {"click"}


def test_every_exported_name_exists() -> None:
    assert all(getattr(sdexport, name) is not None for name in sdexport.__all__)
    assert set(sdexport.__all__) <= set(dir(sdexport))


def test_type_checkers_see_the_exported_names() -> None:
    tree = ast.parse(Path(str(sdexport.__file__)).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = [alias for node in block.body for alias in node.names]  # type: ignore[attr-defined]
    assert sorted(str(alias.asname) for alias in seen) == sorted(sdexport.__all__)


def test_every_error_is_exported() -> None:
    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert tree == {name for name in sdexport.__all__ if name.endswith("Error")}
    assert all(issubclass(getattr(errors, name), errors.SDExportError) for name in tree)


def test_error_table_lists_every_error() -> None:
    lines = str(errors.__doc__).splitlines()
    listed = {line.split()[0] for line in lines if line.startswith("    ")}
    assert listed == {name for name in sdexport.__all__ if name.endswith("Error")}


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        sdexport.paint  # noqa: B018
