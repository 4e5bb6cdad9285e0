"""One server of the demo model for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sdexport import Pipeline, load_pipeline
from sdexport.demo_model import PACKAGE_DIR
from tests.helpers.live_server import LiveServer, live_server


@pytest.fixture(scope="session")
def demo_package() -> Path:
    """The package that is installed with sdexport."""
    return PACKAGE_DIR


@pytest.fixture(scope="session")
def demo_pipe(demo_package: Path) -> Iterator[Pipeline]:
    with load_pipeline(demo_package) as pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def server(demo_package: Path) -> Iterator[LiveServer]:
    with live_server({"demo": demo_package}, keep_seconds=300.0) as live:
        yield live
