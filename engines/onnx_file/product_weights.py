"""The weights of an ONNX graph that are nothing but the right factor of matrix products."""

from __future__ import annotations

from pathlib import Path

from sdexport.engines.errors import EngineError
from sdexport.engines.onnx_file.wire_format import Graph, Model, Node, ValueInfo, open_model

_PRODUCTS = ("MatMul", "Gemm")
_DOMAINS = ("", "ai.onnx")


def product_weights(path: Path) -> set[str]:
    """Names of the weights that only MatMul and Gemm use, and only as their second input.

    Inputs of the graph are none, also if they have a default value.
    Raises: EngineError: not a well-formed ONNX model. FileNotFoundError: no such file.
    """
    try:
        with open_model(path) as model:
            factors: set[str] = set()
            others: set[str] = set()
            for number, value in model.only(Model.GRAPH).fields():
                if number in (Graph.INPUT, Graph.OUTPUT):
                    others.add(value.text(ValueInfo.NAME))
                elif number == Graph.NODE:
                    is_product = value.text(Node.DOMAIN) in _DOMAINS
                    is_product = is_product and value.text(Node.OP_TYPE) in _PRODUCTS
                    names = [
                        each.content().decode() for at, each in value.fields() if at == Node.INPUT
                    ]
                    for index, name in enumerate(names):
                        (factors if is_product and index == 1 else others).add(name)
    except ValueError as error:
        raise EngineError(f"{path.parent.name or path.stem}: {path.name}: {error}") from None
    return factors - others
