"""Images with a ControlNet-XS, whose graphs are left to a process that stores them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sdexport.cli import main
from sdexport.engines.cache import graph_cache
from sdexport.runtime import store_graphs
from tests.helpers.control_nets import control_image

Graphs = dict[str, list[str]]
"""What such a process is given: folder of a package -> its graphs."""


def check_images_before_and_after(
    folder: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    backend: str,
    check: Callable[[Graphs], None],
    between: Callable[[], None],
) -> None:
    """The graphs of an image are stored by one process, and the next image is the same.

    Args:
      folder: with `package` and its ControlNet-XS `xs`.
      cache: the user's cache of graphs.
      check: is called with what the process was given. between: before the second image.
    """
    started: list[Graphs] = []
    edges = tmp_path / "edges.png"
    control_image(64, 64).save(edges)

    def image(name: str) -> bytes:
        command: list[object] = ["generate", folder / "package", "a", "-o", tmp_path / name]
        command += ["--steps", 2, "--seed", 0, "--size", "64x64", "--backend", backend]
        command += ["--controlnet", f"{folder / 'xs'}:{edges}"]
        result = CliRunner().invoke(main, [str(each) for each in command])
        assert result.exit_code == 0, result.output
        return (tmp_path / name).read_bytes()

    def start(command: list[str], *, stdin: Any, **_: Any) -> None:
        started.append(json.load(stdin))

    monkeypatch.setattr(store_graphs.subprocess, "Popen", start)
    expected = image("first.png")
    assert graph_cache.graphs(cache) == []
    (graphs,) = started
    check(graphs)
    for package, each in graphs.items():
        store_graphs.store(Path(package), each)
    assert len(graph_cache.graphs(cache)) == sum(map(len, graphs.values()))
    between()
    assert image("second.png") == expected and len(started) == 1
