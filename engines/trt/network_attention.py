"""The attention of a parsed network: found, and allowed to be decomposed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_PASSED = ("CAST", "SELECT", "UNARY", "SHUFFLE", "IDENTITY")
"""Layers between the softmax of an attention and the product with the values."""
_LONGEST_PATH = 6
"""Layers between a softmax and that product."""


def find_attention(trt: Any, network: Any) -> list[dict[str, Any]]:
    """Find the attention of a network, and let it be decomposed.

    An Attention node without a kernel of its own (float32, wide heads) would otherwise end the
    build. Nodes that have a kernel still use it.

    Returns: for each, node (its name in the ONNX file; of the softmax where attention is written as
      matrix products), single (whether it is one node), dtype (such as "half") and head_size
      (0 if it is not fixed).
    """
    single = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    readers = _readers(network)
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if single is not None and layer.type == single:
            layer.__class__ = trt.IAttentionInputLayer  # the binding returns the base class
            layer.attention.decomposable = True
            found.append(_described(layer.attention.name, layer.get_input(0), single=True))
        elif layer.type == trt.LayerType.SOFTMAX:
            product = _next_product(trt, layer, readers)
            if product is not None:
                found.append(_described(layer.name, product.get_input(1), single=False))
    return found


def _described(node: str, tensor: Any, *, single: bool) -> dict[str, Any]:
    """Of a query (one node) or of the values (products): both end with the size of a head."""
    size = tensor.shape[-1] if len(tensor.shape) else 0
    dtype = str(tensor.dtype).rpartition(".")[2].lower()
    return {"node": node, "single": single, "dtype": dtype, "head_size": max(int(size), 0)}


def _readers(network: Any) -> dict[str, list[Any]]:
    """The layers that read each tensor, by the tensor's name."""
    readers: dict[str, list[Any]] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for tensor in _inputs(layer):
            readers.setdefault(tensor.name, []).append(layer)
    return readers


def _inputs(layer: Any) -> Iterator[Any]:
    for index in range(layer.num_inputs):
        tensor = layer.get_input(index)
        if tensor is not None:
            yield tensor


def _next_product(trt: Any, softmax: Any, readers: dict[str, list[Any]]) -> Any:
    """The matrix product that reads what a softmax computed; None if there is none."""
    kinds = {getattr(trt.LayerType, name) for name in _PASSED}
    level = [softmax]
    for _ in range(_LONGEST_PATH):
        after = [
            reader
            for layer in level
            for index in range(layer.num_outputs)
            for reader in readers.get(layer.get_output(index).name, ())
        ]
        for reader in after:
            if reader.type == trt.LayerType.MATRIX_MULTIPLY:
                return reader
        level = [reader for reader in after if reader.type in kinds]
    return None
