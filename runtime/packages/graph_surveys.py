"""The graphs of a package, each of which is read once, whatever asks about it."""

from __future__ import annotations

from pathlib import Path

from sdexport.engines.errors import PackageError
from sdexport.engines.onnx_file.graph_survey import GraphSurvey, survey
from sdexport.runtime.packages.listed_files import graph_file


class GraphSurveys:
    """What the graphs in a folder consist of; each is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, GraphSurvey] = {}

    def path(self, graph: str) -> Path:
        """The .onnx file of a component or of one of its token graphs."""
        return self.folder / graph_file(graph)

    def of(self, graph: str) -> GraphSurvey:
        """The survey of a component's graph, or of one of its token graphs.

        Raises: PackageError: it is no well-formed ONNX file. FileNotFoundError: it is missing.
        """
        if graph not in self._found:
            try:
                self._found[graph] = survey(self.path(graph))
            except ValueError as error:
                raise PackageError(f"{self.folder}: {graph}: {error}") from error
        return self._found[graph]
