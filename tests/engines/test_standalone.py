"""`sdexport.engines` alone: what importing it imports."""

from __future__ import annotations

import subprocess
import sys

IMPORTED = """
import sys
before = set(sys.modules)
import {module}
names = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(names - set(sys.stdlib_module_names)))
"""


def imported_by(module: str) -> set[str]:
    """Top-level modules outside the standard library that an import imports."""
    code = IMPORTED.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_engines_import_numpy_at_most() -> None:
    assert imported_by("sdexport.engines") == {"sdexport"}  # names are lazy
    assert imported_by("sdexport.engines.session") == {"numpy", "sdexport"}


def test_worker_process_imports_numpy_at_most() -> None:
    """Workers may run in environments of their own, with other libraries."""
    assert imported_by("sdexport.engines.worker_process") <= {"numpy", "sdexport"}
