"""All rewrites of an OpenVINO model, in one function; docs/openvino-rewrites.md describes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sdexport.engines.ov.rewrites.convolutions import rewrite_convolutions
from sdexport.engines.ov.rewrites.empty_products import remove_empty_products
from sdexport.engines.ov.rewrites.half_weights import halve_weights
from sdexport.engines.ov.rewrites.int8 import quantize
from sdexport.engines.ov.rewrites.low_rank import branches_of
from sdexport.engines.ov.rewrites.low_rank_products import merge_branches
from sdexport.engines.ov.rewrites.split import Shapes, half_shapes, hoist, split
from sdexport.engines.session import TensorSpec


@dataclass(frozen=True)
class BoundInputs:
    """The inputs of a session that are bound: constants, and inputs shared by both halves."""

    constants: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()


UNBOUND = BoundInputs()


@dataclass(frozen=True)
class RewrittenModel:
    """Models that are ready to compile.

    model: computed in every call. once: computes from the constants alone what `model` then takes
    as further inputs (split.ONCE), or None. bound: what both were split for; UNBOUND if the graph
    cannot be split.
    """

    model: Any
    once: Any = None
    bound: BoundInputs = UNBOUND


def rewrite_model(
    read: Callable[[], Any],
    specs: Sequence[TensorSpec],
    shapes: Shapes | None,
    *,
    precision: str,
    bound: BoundInputs = UNBOUND,
    empty: Collection[str] = (),
    convolutions: bool = True,
    in_bfloat16: bool = False,
) -> RewrittenModel:
    """Prepare a model for compilation: fix its shapes, split it, and rewrite what gains by it.

    Args:
      read: returns the openvino.Model as it is in the file; called again if it cannot be split.
      specs: the inputs. shapes: theirs; None leaves shapes dynamic, which allows int8 alone.
      precision: of the arithmetic, one of openvino_session.PRECISIONS.
      bound: inputs to split the model for. empty: those without elements, see empty_products.
      convolutions: False leaves convolutions and products as they are.
      in_bfloat16: whether they are computed in bfloat16 on this processor.
    """

    def read_without() -> Any:
        model = read()
        remove_empty_products(model, empty)
        return model

    model, once = read_without(), None
    if shapes is not None:
        specs = [spec for spec in specs if spec.name not in empty]
        shapes = {name: shape for name, shape in shapes.items() if name not in empty}
    if shapes is not None and bound.constants:
        try:
            half = half_shapes(specs, shapes, bound.shared)
            model, once = split(model, shapes, half, bound.constants, bound.shared)
        except ValueError:  # this graph cannot be split
            model, bound = read_without(), UNBOUND
    if shapes is not None and not bound.constants:
        model.reshape({name: list(shape) for name, shape in shapes.items()})
    if shapes is not None and convolutions:
        branches = found = branches_of(model)
        if once is not None and precision != "i8":
            branches = merge_branches(branches, in_bfloat16=in_bfloat16)
        rewrite_convolutions(model, winograd=precision == "f32", branches=branches)
        if once is not None and found:
            model, once = hoist(model, once, in_bfloat16=in_bfloat16)
    if precision == "i8":
        quantize(model)
    for each in (model, once):
        if each is not None:
            halve_weights(each, in_bfloat16=in_bfloat16)
    return RewrittenModel(model, once, bound)
