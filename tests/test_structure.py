"""Rules of the tests themselves: independent modules, and tolerances in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SLOWEST_FIRST

TESTS = Path(__file__).parent
MODULES = sorted(TESTS.rglob("test_*.py"))
COMPARISONS = {"approx", "assert_allclose", "allclose", "isclose", "assert_close"}
KEYWORDS = {"rtol", "atol", "rel", "abs", "abs_"}


def called(node: ast.AST) -> str:
    """The last name of a call's function; empty for everything else."""
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def is_number(node: ast.AST) -> bool:
    """Whether an expression holds a number other than zero."""
    constants = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
    return any(isinstance(value, int | float) and value for value in constants)


def bare_tolerances(tree: ast.AST) -> Iterator[int]:
    """Lines that compare floats with a number, or with a library's default tolerance."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) in COMPARISONS:
            limits = [k.value for k in node.keywords if k.arg in KEYWORDS]
            if not limits or any(map(is_number, limits)):
                yield node.lineno
        elif isinstance(node, ast.Assert):
            for part in ast.walk(node):
                if isinstance(part, ast.Compare) and isinstance(part.ops[0], ast.Lt | ast.LtE):
                    differs = any(called(n) in {"abs", "norm"} for n in ast.walk(part.left))
                    if differs and is_number(part.comparators[0]):
                        yield part.lineno


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TESTS)))
def test_modules_of_tests(path: Path) -> None:
    """Shared functions belong to tests/helpers and tolerances to tests/tolerances.py."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tests = [name for name in imported(tree) if ".test_" in f".{name}"]
    assert not tests, "a test module imports another one"
    assert not list(bare_tolerances(tree)), "name these tolerances in tests/tolerances.py"


def test_helpers_import_no_test() -> None:
    for path in (*TESTS.rglob("conftest.py"), *(TESTS / "helpers").rglob("*.py")):
        names = imported(ast.parse(path.read_text(encoding="utf-8")))
        assert not [name for name in names if ".test_" in f".{name}"], path


def test_folders_of_tests_are_packages() -> None:
    """Without __init__.py two test modules of one name could not be collected together."""
    assert [p for p in MODULES if not (p.parent / "__init__.py").is_file()] == []


def test_slowest_files_exist() -> None:
    assert [name for name in SLOWEST_FIRST if not (TESTS / name).is_file()] == []


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("assert_close(a, b, rel=COMPONENT_REL)", []),
        ("np.testing.assert_allclose(a, b, rtol=0, atol=IMAGE_ABS)", []),
        ("np.testing.assert_allclose(a, b)", [1]),
        ("assert a == pytest.approx(2)", [1]),
        ("assert a == pytest.approx(2, rel=1e-9)", [1]),
        ("assert_close(a, b, rel=10 * COMPONENT_REL)", [1]),
        ("assert np.abs(a - b).max() <= 1", [1]),
        ("assert np.abs(a - b).max() <= IMAGE_ABS", []),
        ("assert np.abs(a - b).max() > 0.1", []),
    ],
)
def test_bare_tolerances_are_found(code: str, lines: list[int]) -> None:
    assert list(bare_tolerances(ast.parse(code))) == lines


def errors_without_memory(tree: ast.AST) -> Iterator[int]:
    """Lines that turn every exception into another one, also a MemoryError."""
    for node in ast.walk(tree):
        passed = False
        for handler in node.handlers if isinstance(node, ast.Try) else ():
            names = {n.id for n in ast.walk(handler.type or ast.Tuple()) if isinstance(n, ast.Name)}
            passed = passed or "MemoryError" in names
            raised = [n for n in ast.walk(handler) if isinstance(n, ast.Raise) and n.exc]
            if "Exception" in names and raised and not passed:
                yield handler.lineno


@pytest.mark.parametrize("folder", ["engines", "runtime", "sdexport"])
def test_memory_errors_pass_through(folder: str) -> None:
    """A file is not damaged because the memory does not suffice to read it."""
    found = [
        f"{path.relative_to(TESTS.parent)}:{line}"
        for path in sorted((TESTS.parent / folder).rglob("*.py"))
        for line in errors_without_memory(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "put `except MemoryError: raise` before `except Exception`"
