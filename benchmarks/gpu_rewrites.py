"""Attention of a traced graph as one node over (batch, sequence, width), without transpositions.

PyTorch's attention is traced as Reshape, Transpose, Attention, Transpose, Reshape, over (batch,
heads, sequence, width of a head). Fused kernels take (batch, sequence, heads * width), as the
products before and after do.

Source: the operators Attention (opset 23) of ONNX and MultiHeadAttention of ONNX Runtime's contrib
operators.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from sdexport.engines.onnx_file.graph_survey import survey

REWRITES = ("Attention", "MultiHeadAttention")
_HEADS_SECOND = (0, 2, 1, 3)


def rewrite_attention(path: Path, operator: str, folder: Path) -> tuple[Path, int]:
    """Write the graph with its attention rewritten, to a folder of its own.

    Args:
      operator: one of REWRITES. folder: the file of weights is linked there, or copied.
    Returns: the new file, and how many nodes were rewritten; others stay as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in survey(path).locations:
        (folder / name).unlink(missing_ok=True)
        try:
            os.link(path.parent / name, folder / name)
        except OSError:
            shutil.copyfile(path.parent / name, folder / name)
    target = folder / path.name
    model = ir.load(path)
    nodes = [n for n in model.graph if n.op_type == "Attention" and n.domain == ""]
    count = sum(_rewritten(model.graph, node, operator) for node in nodes)
    _remove_unused(model.graph)
    if operator == "MultiHeadAttention":
        model.graph.opset_imports["com.microsoft"] = 1
    ir.save(model, target)
    return target, count


def _rewritten(graph: ir.Graph, node: ir.Node, operator: str) -> bool:
    """Whether the node was replaced: it has the form above, and no mask."""
    if len([value for value in node.inputs if value is not None]) != 3:
        return False
    before = [_before_split(value) for value in node.inputs]
    after = _only_use(node.outputs[0], "Transpose")
    joined = _only_use(after.outputs[0], "Reshape") if after is not None else None
    if joined is None or any(each is None for each in before):
        return False
    heads = {each[1] for each in before if each is not None}
    if len(heads) != 1 or _order(after) != _HEADS_SECOND:
        return False
    (count,) = heads
    sources = [each[0] for each in before if each is not None]
    scale = node.attributes.get("scale")
    attributes: dict[str, Any] = {} if scale is None else {"scale": scale.as_float()}
    if operator == "Attention":
        attributes |= {"q_num_heads": count, "kv_num_heads": count}
        domain = ""
    else:
        attributes["num_heads"] = count
        domain = "com.microsoft"
    new = ir.node(operator, sources, attributes, domain=domain)
    graph.insert_before(joined, new)
    joined.outputs[0].replace_all_uses_with(new.outputs[0])
    return True


def _before_split(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """The (batch, sequence, width) behind Reshape and Transpose, and the number of heads."""
    transpose = None if value is None else value.producer()
    if transpose is None or transpose.op_type != "Transpose" or _order(transpose) != _HEADS_SECOND:
        return None
    split = transpose.inputs[0].producer() if transpose.inputs[0] is not None else None
    if split is None or split.op_type != "Reshape" or split.inputs[0] is None:
        return None
    shape = split.inputs[1]
    heads = None if shape is None else _third_of(shape)
    return None if heads is None else (split.inputs[0], heads)


def _third_of(shape: ir.Value) -> int | None:
    """The third number of a shape of four, if it is constant."""
    if shape.const_value is not None:
        numbers = shape.const_value.numpy().tolist()
        return int(numbers[2]) if len(numbers) == 4 and numbers[2] > 0 else None
    concat = shape.producer()
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 4:
        return None
    third = concat.inputs[2]
    constant = None if third is None else third.const_value
    return None if constant is None else int(constant.numpy().item())


def _order(node: ir.Node | None) -> tuple[int, ...]:
    order = None if node is None else node.attributes.get("perm")
    return () if order is None else tuple(order.as_ints())


def _only_use(value: ir.Value, op_type: str) -> ir.Node | None:
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None


def _remove_unused(graph: ir.Graph) -> None:
    kept = {id(value) for value in graph.outputs}
    for node in reversed(list(graph)):
        if all(not v.uses() and id(v) not in kept for v in node.outputs):
            graph.remove(node, safe=True)
