"""Split an OpenVINO model so that less of it is computed in every call.

Everything that depends only on bound inputs, such as the keys and values of a prompt, becomes a
model of its own that is computed once. Everything that is the same for both halves of a batch, such
as the part of a UNet before the prompt enters, is computed for one half and repeated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as ops

from sdexport.engines.ov.rewrites.nodes import as_type
from sdexport.engines.session import ANY_SIZE, TensorSpec

Shapes = Mapping[str, tuple[int, ...]]
"""By the name of an input."""

ONCE = "once.{}"
"""Name of an output of the model that is computed once."""
_ONCE, _HALF, _EVERY = "once", "half", "every"
"""Where a node is computed: once for all calls, for one half of the batch, or in every call."""


def half_shapes(specs: Sequence[TensorSpec], shapes: Shapes, shared: Collection[str]) -> Shapes:
    """The shapes of all inputs for one half of the batch.

    Args:
      specs: the inputs; shapes: theirs, for the whole batch.
      shared: inputs that are the same for both halves.
    Raises: ValueError: the batch is not one dimension with a name.
    """
    batch = {spec.shape[0] for spec in specs if spec.name in shared}
    if len(batch) > 1 or not all(isinstance(name, str) and name != ANY_SIZE for name in batch):
        raise ValueError("the batch has no name")
    return {
        spec.name: tuple(
            size // 2 if name in batch else size
            for name, size in zip(spec.shape, shapes[spec.name], strict=True)
        )
        for spec in specs
    }


def split(
    model: Any, whole: Shapes, half: Shapes, constants: Collection[str], shared: Collection[str]
) -> tuple[Any, Any]:
    """Split a model in two: what is computed in every call, and what is computed once.

    Args:
      model: an openvino.Model; it is changed and must not be used again.
      whole: the shape of every input for the whole batch; half: for one half of it. An input whose
        shape is the same in both has no batch dimension.
      constants: inputs that stay the same for many calls.
      shared: inputs that are the same for both halves; the first model takes one of them. Rows of
        a batch must not depend on each other.
    Returns: two models. The first has the inputs of `model` without the constants and, named
      ONCE.format(i), the outputs of the second. The second takes the constants; it is None if
      nothing depends on them alone.
    Raises: ValueError: it cannot be split: the batch is not the first dimension of a tensor, or
      OpenVINO simplified the half in another way than the whole.
    """
    smaller_model = model.clone()
    for each, shapes in ((model, whole), (smaller_model, half)):
        each.reshape({name: list(shape) for name, shape in shapes.items()})
        _fix_shapes(each)
    equal = {n for n in whole if n in shared or whole[n] == half[n]}
    nodes = model.get_ordered_ops()
    places = _places(nodes, constants, equal if shared else ())
    smaller = dict(zip((n.get_name() for n in nodes), smaller_model.get_ordered_ops(), strict=True))
    return _cut(model, nodes, places, smaller)


def hoist(model: Any, once: Any, *, in_bfloat16: bool) -> tuple[Any, Any]:
    """Compute once what rewrites have made of values that are computed once, and nothing else.

    Args:
      model, once: of `split`; they are changed and must not be used again.
      in_bfloat16: hand values over in bfloat16, as they are computed with.
    Returns: the two models, as `split` returns them.
    """
    handed_as = Type.bf16 if in_bfloat16 else Type.f32
    results = once.get_results()
    handed = {ONCE.format(i): result.input_value(0) for i, result in enumerate(results)}
    nodes = model.get_ordered_ops()
    first, further = _cut(model, nodes, _places(nodes, handed, ()), {}, handed_as)
    for parameter in further.get_parameters():
        (name,) = parameter.output(0).get_names()
        parameter.output(0).set_names(set())  # or what replaces it would get the name, too
        parameter.output(0).replace(handed[name])
    return first, ov.Model(further.get_results(), once.get_parameters(), "once")


def _cut(
    model: Any,
    nodes: list[Any],
    places: Mapping[str, str],
    smaller: Mapping[str, Any],
    handed_as: Any = Type.f32,
) -> tuple[Any, Any]:
    """Replace the inputs of nodes of every call that come from the other two places.

    Args:
      handed_as: the type of numbers that one model hands over to the other.
    """
    replaced: dict[tuple[str, int], Any] = {}  # in place of outputs of the nodes that were cut off
    inputs: list[Any] = []
    results: list[Any] = []
    for node in nodes:
        place = places[node.get_name()]
        if place == _ONCE:
            continue
        kept = node if place == _EVERY else smaller[node.get_name()]
        if node.get_type_name() == "Parameter":
            inputs.append(kept)
        for target, before in zip(kept.inputs(), node.input_values(), strict=True):
            name, index = before.get_node().get_name(), before.get_index()
            if places[name] in (_EVERY, place):
                continue
            if (name, index) not in replaced:
                if places[name] == _HALF:
                    replaced[name, index] = _repeated(smaller[name].output(index), before)
                else:
                    replaced[name, index] = _from_once(before, inputs, results, handed_as)
            if place == _HALF and list(target.get_shape()) != list(before.get_shape()):
                raise ValueError(f"{name} depends on the size of the batch")
            target.replace_source_output(replaced[name, index])
    first = ov.Model(model.get_results(), inputs, model.get_friendly_name())
    constants = [p for p in model.get_parameters() if places[p.get_name()] == _ONCE]
    return first, ov.Model(results, constants, "once") if results else None


def _from_once(source: Any, inputs: list[Any], results: list[Any], handed_as: Any) -> Any:
    """Hand a value of the model that is computed once over to the other, as a new input of it."""
    element = source.get_element_type()
    handed = handed_as if element.is_real() else element
    parameter = ops.parameter(source.get_shape(), handed)
    parameter.output(0).set_names({ONCE.format(len(results))})
    results.append(ops.result(as_type(source, handed)))
    inputs.append(parameter)
    return as_type(parameter.output(0), element)


def _fix_shapes(model: Any) -> None:
    """Replace ShapeOf nodes by constants: they would make their users depend on an input."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ShapeOf":
            sizes = np.array(list(node.get_input_shape(0)), node.get_element_type().to_dtype())
            node.output(0).replace(ops.constant(sizes).output(0))


def _places(nodes: list[Any], constants: Collection[str], equal: Collection[str]) -> dict[str, str]:
    """By node. What depends on no input, such as weights, stays with its users."""
    constants, equal = frozenset(constants), frozenset(equal)
    sources: dict[str, frozenset[str]] = {}
    places: dict[str, str] = {}
    for node in nodes:
        name, inputs = node.get_name(), frozenset[str]()
        if node.get_type_name() == "Parameter":
            inputs = frozenset(node.output(0).get_names())
        for before in node.inputs():
            inputs |= sources[before.get_source_output().get_node().get_name()]
        sources[name] = inputs
        places[name] = _EVERY
        if inputs and node.get_type_name() != "Result":
            places[name] = _ONCE if inputs <= constants else _HALF if inputs <= equal else _EVERY
    return places


def _repeated(half: Any, whole: Any) -> Any:
    """The output of one half in the shape of the whole.

    Raises: ValueError: the whole has neither the same shape nor twice as many rows.
    """
    have, want = list(half.get_shape()), list(whole.get_shape())
    if have == want:
        return half
    if not have or [2 * have[0], *have[1:]] != want:
        raise ValueError(f"{have} repeated is not {want}")
    return ops.concat([half, half], 0).output(0)
