"""Repositories for a Triton server, each with the server's stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sdexport.demo_model import PACKAGE_DIR
from sdexport.triton.repository_writer import RepositoryOptions, write_repository
from tests.helpers.triton_server import TritonServer


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in float16, as it is installed."""
    folder = tmp_path_factory.mktemp("triton") / "models"
    write_repository(PACKAGE_DIR, folder, options=RepositoryOptions(name="demo", kind="cpu"))
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[TritonServer]:
    made = TritonServer(repository)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _no_calls(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        request.getfixturevalue("server").calls.clear()
