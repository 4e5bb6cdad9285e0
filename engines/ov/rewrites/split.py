"""Parts of an OpenVINO model that need not be computed in every call.

What depends on bound inputs alone, such as the keys and values of a prompt, becomes a model of its
own that is computed once. What is the same for both halves of a batch, such as all of a UNet before
it meets the prompt, is computed for one half and repeated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as ops

from sdexport.engines.ov.rewrites.convolutions import as_type

Shapes = Mapping[str, tuple[int, ...]]

ONCE = "once.{}"
_ONCE, _HALF, _EVERY = "once", "half", "every"
"""When a node is computed: once for all calls, for one half of the batch, or as it was."""


def split(
    model: Any, whole: Shapes, half: Shapes, held: Collection[str], twice: Collection[str]
) -> tuple[Any, Any]:
    """Cut a model in two: what is computed in every call, and what once.

    Args:
      model: an openvino.Model; it is used up.
      whole: the shape of every input, for the whole batch; half: for one half of it. An input whose
        shape is the same in both has no batch.
      held: inputs that stay the same for many calls.
      twice: inputs whose halves are equal; the first model takes one of them. Rows of a batch must
        not depend on each other.
    Returns: the first model, whose inputs are those of `model` without the held ones and, named
      ONCE.format(i), the outputs of the second; and the second, of the held inputs, or None if
      nothing depends on them alone.
    Raises: ValueError: it cannot be cut so: the rows of a tensor do not come first, or OpenVINO
      simplified the half in another way than the whole.
    """
    other = model.clone()
    for each, shapes in ((model, whole), (other, half)):
        each.reshape({name: list(shape) for name, shape in shapes.items()})
        _fix_shapes(each)
    equal = {n for n in whole if n not in held and (n in twice or whole[n] == half[n])}
    nodes = model.get_ordered_ops()
    when = _when(nodes, held, equal if twice else ())
    smaller = dict(zip((n.get_name() for n in nodes), other.get_ordered_ops(), strict=True))
    found: dict[tuple[str, int], Any] = {}  # in place of outputs of the nodes that were cut off
    inputs: list[Any] = []
    results: list[Any] = []
    for node in nodes:
        kind = when[node.get_name()]
        if node.get_type_name() == "Parameter" and kind != _ONCE:
            inputs.append(node if kind == _EVERY else smaller[node.get_name()])
        for target in node.inputs() if kind == _EVERY else ():
            source = target.get_source_output()
            name, index = source.get_node().get_name(), source.get_index()
            if when[name] == _EVERY:
                continue
            if (name, index) not in found:
                if when[name] == _HALF:
                    found[name, index] = _repeated(smaller[name].output(index), source)
                else:
                    element = source.get_element_type()
                    handed = Type.f32 if element.is_real() else element  # NumPy has no bf16
                    stand_in = ops.parameter(source.get_shape(), handed)
                    stand_in.output(0).set_names({ONCE.format(len(results))})
                    results.append(ops.result(as_type(source, handed)))
                    inputs.append(stand_in)
                    found[name, index] = as_type(stand_in.output(0), element)
            target.replace_source_output(found[name, index])
    first = ov.Model(model.get_results(), inputs, model.get_friendly_name())
    of_once = [p for p in model.get_parameters() if when[p.get_name()] == _ONCE]
    return first, ov.Model(results, of_once, "once") if results else None


def _fix_shapes(model: Any) -> None:
    """Shapes that are asked for become constants, so that nothing depends on an input for them."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ShapeOf":
            sizes = np.array(list(node.get_input_shape(0)), node.get_element_type().to_dtype())
            node.output(0).replace(ops.constant(sizes).output(0))


def _when(nodes: list[Any], held: Collection[str], halves: Collection[str]) -> dict[str, str]:
    """By node; what depends on no input, such as weights, is left to those that use it."""
    held, halves = frozenset(held), frozenset(halves)
    sources: dict[str, frozenset[str]] = {}
    when: dict[str, str] = {}
    for node in nodes:
        name, found = node.get_name(), frozenset[str]()
        if node.get_type_name() == "Parameter":
            found = frozenset(node.output(0).get_names())
        for before in node.inputs():
            found |= sources[before.get_source_output().get_node().get_name()]
        sources[name] = found
        when[name] = _EVERY
        if found and node.get_type_name() != "Result":
            when[name] = _ONCE if found <= held else _HALF if found <= halves else _EVERY
    return when


def _repeated(half: Any, whole: Any) -> Any:
    """The output of one half in the shape of the whole.

    Raises: ValueError: it is neither the same nor one of two equal parts.
    """
    have, want = list(half.get_shape()), list(whole.get_shape())
    if have == want:
        return half
    if not have or [2 * have[0], *have[1:]] != want:
        raise ValueError(f"{have} repeated is not {want}")
    return ops.concat([half, half], 0).output(0)
