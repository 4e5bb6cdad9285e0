"""Tracing one component with PyTorch and writing it as an ONNX file.

The graph shares the module's weights. What has to be done to a weight, such as the transposition
for ONNX's MatMul, is done when it is written, so that only one weight at a time is in memory twice.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from onnxscript import optimizer
from onnxscript.rewriter import onnx_fusions

from sdexport.checkpoints.modules import stand_ins
from sdexport.engines import TensorSpec
from sdexport.graphs.lora_layers import LoraLayer, find_layers
from sdexport.graphs.wrappers import Part
from sdexport.runtime.models.components import Role
from sdexport.runtime.version import __version__

EXTERNAL_DATA_FROM = 100_000_000
"""Bytes of weights from which they are written to model.onnx_data. Such a file is mapped into
memory; weights inside the graph are in memory several times while it is written or read. A text
encoder always has a data file, because several graphs read it."""
_HALF = "float16 weight"
"""Key of an initializer's float16 weight, of which it holds a float32 form."""
# Sizes of the traced example. Odd where possible, so that no axis is assumed to be a multiple of a
# power of two and the UNet passes the sizes of its skip connections on to its upsamplers.
_EXAMPLE = {
    "batch": 2,
    "sequence": 77,
    "height": 17,
    "width": 19,
    "image_height": 136,
    "image_width": 152,
}


def trace(
    part: Part,
    module: Any,
    path: Path,
    *,
    opset: int,
    change: Callable[[ir.Model], object] | None = None,
    notes: Mapping[str, str] | None = None,
    find_lora_layers: bool = False,
    data_file: bool = False,
) -> tuple[LoraLayer, ...]:
    """Write one component as an ONNX file with dynamic axes; large weights go to a data file.

    Args:
      part: names and shapes of the component.
      module: the module that the part wraps.
      path: of the .onnx file; the folder is created.
      change: applied to the graph before it is written, such as a conversion to float16.
      notes: metadata of the ONNX file.
      find_lora_layers: find the layers that a LoRA may change.
      data_file: write weights of any size to a data file, for further graphs that read it.
    Returns: these layers.
    Raises: CheckpointError: see find_layers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    model = _traced(part, module, opset)
    layers = _layers(model.graph, module) if find_lora_layers else ()
    _tidy(model, part)
    if change is not None:
        change(model)
    model.metadata_props.update(notes or {})
    weights = [value.const_value for value in model.graph.initializers.values()]
    size = sum(weight.nbytes for weight in weights if weight is not None)
    separate = size > EXTERNAL_DATA_FROM or part.role is Role.TEXT_ENCODER or data_file
    weights_file = f"{path.name}_data" if separate else None
    ir.save(model, path, external_data=weights_file, max_workers=os.cpu_count())
    _forget_constants(model)
    return layers


def _traced(part: Part, module: Any, opset: int) -> ir.Model:
    dynamic = {spec.name: _dynamic_axes(spec) for spec in part.inputs}
    with torch.inference_mode(False), torch.no_grad(), _quiet(), stand_ins(module) as halves:
        # The strict mode, to which torch.onnx.export would fall back, copies the weights.
        captured = torch.export.export(
            part.wrap(module).eval(),
            args=(),
            kwargs=part.example(_EXAMPLE, seed=0),
            dynamic_shapes=dynamic,
            strict=False,
        )
        program = torch.onnx.export(
            captured,
            dynamo=True,
            opset_version=opset,
            input_names=[spec.name for spec in part.inputs],
            output_names=[spec.name for spec in part.outputs],
            verbose=False,
            optimize=False,
        )
        assert program is not None  # for the type checker: None comes only with dynamo=False
        _fold_transpositions(program.model.graph)
        optimizer.optimize(program.model)
        onnx_fusions.fuse(program.model)
        drop_nan_guards(program.model.graph)
        _put_back(program.model.graph, halves)
    return program.model


def _layers(graph: ir.Graph, module: Any) -> tuple[LoraLayer, ...]:
    """The layers that a LoRA may change, in a graph that still has its shapes."""
    weights = {}
    for name, value in graph.initializers.items():
        weight = value.meta.get(_HALF, _weight(value))
        if weight is not None:
            weights[name] = weight
    return find_layers(graph, module, weights)


def _dynamic_axes(spec: TensorSpec) -> dict[int, Any]:
    """The axes of an input whose size is not fixed."""
    axes = enumerate(spec.shape)
    return {axis: torch.export.Dim.DYNAMIC for axis, size in axes if isinstance(size, str)}


def _fold_transpositions(graph: ir.Graph) -> None:
    """Replace transposed weights with views, which are copied only when they are written.

    The optimiser would copy them at once and keep both.
    """
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        weight = None if source is None else _weight(source)
        order = node.attributes.get("perm")
        if source is None or weight is None or order is None or len(source.uses()) != 1:
            continue
        result = node.outputs[0]
        view = TorchTensor(weight.permute(order.as_ints()), name=result.name)
        value = ir.Value(name=result.name, type=source.type, shape=view.shape, const_value=view)
        result.replace_all_uses_with(value)
        graph.remove(node, safe=True)
        del graph.initializers[str(source.name)]
        graph.register_initializer(value)


def drop_nan_guards(graph: ir.Graph) -> None:
    """Take softmax as it is where the exporter replaces NaN by 0, before opset 23.

    Softmax is NaN in rows in which every column is masked. With a causal mask there are none, and
    TensorRT fuses attention only without the replacement.
    """
    for node in list(graph):
        softmax = guarded_softmax(node)
        if softmax is not None:
            ir.convenience.replace_all_uses_with(node.outputs[0], softmax)
            guard = node.inputs[0]
            graph.remove(node, safe=True)
            if guard is not None and not guard.uses() and guard.producer() is not None:
                graph.remove(guard.producer(), safe=True)  # type: ignore[arg-type]


def guarded_softmax(node: ir.Node) -> ir.Value | None:
    """The output of the softmax that a Where(IsNaN(softmax), 0, softmax) guards; else None."""
    if node.op_type != "Where" or len(node.inputs) != 3:
        return None
    test, softmax = node.inputs[0], node.inputs[2]
    guard, source = (value.producer() if value is not None else None for value in (test, softmax))
    if guard is None or source is None or (guard.op_type, source.op_type) != ("IsNaN", "Softmax"):
        return None
    return softmax if guard.inputs[0] is softmax else None


def _put_back(graph: ir.Graph, halves: Mapping[int, torch.Tensor]) -> None:
    """Replace the stand-ins by the float16 weights, converted to float32 when they are read."""
    for value in graph.initializers.values():
        weight = _weight(value)
        half = None if weight is None else halves.get(weight.data_ptr())
        if weight is not None and half is not None:
            compute = partial(_single, half.as_strided(weight.size(), weight.stride()))
            shape = ir.Shape(weight.shape)
            tensor = ir.LazyTensor(compute, ir.DataType.FLOAT, shape, name=value.name)
            value.const_value = tensor
            value.meta[_HALF] = half


def _single(half: torch.Tensor) -> TorchTensor:
    return TorchTensor(half.float())


def _weight(value: ir.Value) -> torch.Tensor | None:
    """The module's own tensor behind an initializer, or a view of it."""
    raw = getattr(value.const_value, "raw", None)
    return raw.detach() if value.is_initializer() and isinstance(raw, torch.Tensor) else None


def _forget_constants(model: ir.Model) -> None:
    """Free the graph's weights: onnxscript's rules keep the last nodes they matched."""
    for value in model.graph.initializers.values():
        value.const_value = None
        value.meta.pop(_HALF, None)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.const_value = None


def _tidy(model: ir.Model, part: Part) -> None:
    """Name the dynamic axes, and remove the exporter's notes about its machine and sources."""
    for values, specs in ((model.graph.inputs, part.inputs), (model.graph.outputs, part.outputs)):
        for value, spec in zip(values, specs, strict=True):
            value.metadata_props.clear()
            value.shape = ir.Shape(spec.shape)
    edges = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in edges:
                # At opset 18 the exporter's shapes inside decomposed attention are wrong, and ONNX
                # Runtime shares buffers by them. Every engine infers its own.
                value.shape = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name = part.name
    model.producer_name, model.producer_version = "sdexport", __version__
    model.doc_string = f"{part.name} of Stable Diffusion, exported by sdexport"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.utils", "torch.export")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
