"""Each graph of a package as a model of Triton's ONNX Runtime backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdexport.engines.errors import PackageError
from sdexport.engines.guarded_files import parsing
from sdexport.engines.messages import plain
from sdexport.engines.onnx_file.graph_specs import specs_of
from sdexport.engines.session import TensorSpec
from sdexport.runtime.models.components import ADAPTER_GRAPHS
from sdexport.runtime.packages.package import Package
from sdexport.triton.model_config import ANY, DATA_TYPES, ConfigTensor, ModelConfig

GRAPH = "model.onnx"
"""The file of a graph in the folder of its model's version."""
_BATCH = ("batch", "batch_size")
"""Names of the batch dimension, here and in Optimum's graphs."""


@dataclass(frozen=True)
class GraphModel:
    """A graph as a model.

    graph: as in Package.graphs. name: of Triton's model.
    max_batch_size: rows of the batch at most; 0 if Triton cannot batch the graph, which then takes
    its tensors as they are, the batch dimension among them.
    """

    graph: str
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int

    def config(self, *, instances: int, kind: str) -> ModelConfig:
        """Its configuration."""
        return ModelConfig(
            self.name,
            "onnxruntime",
            tuple(map(self._tensor, self.inputs)),
            tuple(map(self._tensor, self.outputs)),
            max_batch_size=self.max_batch_size,
            instances=instances,
            kind=kind,
        )

    def _tensor(self, spec: TensorSpec) -> ConfigTensor:
        shape = spec.shape[1:] if self.max_batch_size else spec.shape
        dims = tuple(size if isinstance(size, int) else ANY for size in shape)
        return ConfigTensor(
            spec.name,
            spec.dtype,
            dims or (1,),
            has_no_dims=has_no_dims(spec, self.max_batch_size),
        )


def graph_models(
    package: Package, name: str, *, max_batch: int, adapter_graphs: bool
) -> list[GraphModel]:
    """The graphs of a package as models.

    Args:
      name: what the names of the models begin with.
      max_batch: rows of a model's batch at most.
      adapter_graphs: also those that take the inputs of adapters.
    Raises: PackageError: a graph with a tensor that Triton does not take.
    """
    return [
        _graph_model(package, graph, f"{name}_{graph.replace('.', '_')}", max_batch)
        for graph in package.graphs
        if adapter_graphs or not takes_adapters(graph)
    ]


def takes_adapters(graph: str) -> bool:
    """Whether a graph has inputs for adapters."""
    return graph.partition(".")[2] in ADAPTER_GRAPHS


def _graph_model(package: Package, graph: str, name: str, max_batch: int) -> GraphModel:
    path, survey = package.model_path(graph), package.surveys.of(graph)
    with parsing(PackageError, path):
        inputs, outputs = (specs_of(each, path) for each in (survey.inputs, survey.outputs))
    for spec in (*inputs, *outputs):
        if spec.dtype not in DATA_TYPES:
            raise PackageError(
                f"{path}: Triton's ONNX Runtime backend takes no {plain(spec.dtype)}, which "
                f"{plain(spec.name)} is"
            )
    return GraphModel(
        graph, name, inputs, outputs, max_batch if has_batch((*inputs, *outputs)) else 0
    )


def has_batch(specs: Sequence[TensorSpec]) -> bool:
    """Whether the first dimension of all inputs and outputs is the batch.

    A UNet's timestep is one for the whole batch, so Triton does not batch its requests.
    """
    return all(spec.shape and spec.shape[0] in _BATCH for spec in specs) and not any(
        size in _BATCH for spec in specs for size in spec.shape[1:]
    )


def has_no_dims(spec: TensorSpec, max_batch_size: int) -> bool:
    """Whether a tensor has no dimension but the batch, for which Triton's clients add one of 1."""
    return len(spec.shape) == (1 if max_batch_size else 0)


def model_files(package: Package, graph: str) -> dict[str, Path]:
    """The files of a graph: path in the folder of its model's version -> path in the package.

    Raises: PackageError: its weights are in a file of the name that the graph itself gets.
    """
    path = package.model_path(graph)
    weights = sorted(package.surveys.of(graph).locations)
    if any(name.casefold() == GRAPH for name in weights):
        raise PackageError(f"{path}: its weights are in {GRAPH}, which is the graph's own name")
    return {GRAPH: path, **{name: path.parent / name for name in weights}}
