"""PyTorch modules whose weights stay in mapped files: never initialised, never copied as a whole.

A module is built on the meta device and gets the tensors of the mapped file themselves, so float32
weights take no memory of their own. Large layers of a file in half precision keep float16 weights
and convert them to float32 for each use: the outputs are those of a float32 module, in half of its
memory.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from sdexport.engines.errors import CheckpointError
from sdexport.runtime.models.components import SAFETY_CHECKER

Tensors = Mapping[str, torch.Tensor]

LARGE = 1_000_000
"""Elements from which on a float16 weight is converted at each use, and not in advance."""

_IN_HALF = (torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
"""Types all of whose values float16 holds exactly."""


class _Linear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return nn.functional.linear(input, self.weight.float(), self.bias)


class _Conv2d(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return self._conv_forward(input, self.weight.float(), self.bias)


_UPCASTING = {nn.Linear: _Linear, nn.Conv2d: _Conv2d}


def empty(class_name: str, config: Mapping[str, Any]) -> Any:
    """A module of diffusers or transformers without weights."""
    with torch.device("meta"):
        if class_name in SAFETY_CHECKER.classes[1]:
            from diffusers.pipelines.stable_diffusion import safety_checker

            clip = transformers.CLIPConfig.from_dict(dict(config))
            return getattr(safety_checker, class_name)(clip)
        if class_name.startswith("CLIP"):
            text = transformers.CLIPTextConfig.from_dict(dict(config))
            return getattr(transformers, class_name)(text)
        class_ = getattr(diffusers, class_name)
        known = inspect.signature(class_.__init__).parameters  # of others diffusers warns
        return class_.from_config({k: v for k, v in config.items() if k in known or k[0:1] == "_"})


def check_shapes(path: Path, part: str, module: Any, found: Tensors) -> None:
    """Check that a module's weights are all there.

    Args:
      path, part: for messages.
    Raises: CheckpointError: weights are missing, of another shape, or quantised.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    wrong = [
        name for name in wanted if name not in found or tuple(found[name].shape) != wanted[name]
    ]
    if wrong:
        first = wrong[0]
        got = tuple(found[first].shape) if first in found else "nothing"
        raise CheckpointError(
            f"{path}: {part}: {len(wrong)} of {len(wanted)} weights are missing or of another "
            f"shape, such as {first}: expected {wanted[first]}, got {got}"
        )
    integers = [name for name in wanted if not found[name].is_floating_point()]
    if integers:
        raise CheckpointError(
            f"{path}: {part}: weight {integers[0]} is {found[integers[0]].dtype}, so the file is "
            "quantised; export the float16 or float32 one"
        )


def fill(module: nn.Module, tensors: Tensors) -> Any:
    """Give an empty module its weights, for inference in float32.

    Args:
      module: on the meta device; it is changed.
      tensors: by the module's names, of any floating-point type. Those of float32 become its
        weights themselves and may be a mapped file: replace them, never write to them.
    """
    for path, layer in module.named_modules():
        upcasting = _UPCASTING.get(type(layer))
        weight = tensors.get(f"{path}.weight")
        if upcasting and weight is not None and weight.dtype in _IN_HALF and is_large(weight):
            layer.__class__ = upcasting
    kept = {f"{name}.weight" for name, layer in module.named_modules() if upcasts(layer)}
    weights = {
        name: tensors[name].to(torch.float16 if name in kept else torch.float32)
        for name in module.state_dict()
    }
    module.load_state_dict(weights, assign=True)
    for name, buffer in module.named_buffers():
        if name.endswith("position_ids") and buffer.is_meta:
            owner: Any = module.get_submodule(name.rpartition(".")[0])
            owner.position_ids = torch.arange(buffer.shape[-1]).expand((1, -1))
    return module.eval().requires_grad_(False)


def is_large(weight: torch.Tensor) -> bool:
    """Whether a weight is worth keeping in float16."""
    return weight.numel() >= LARGE


def upcasts(layer: nn.Module) -> bool:
    """Whether the layer keeps a float16 weight and converts it at each use."""
    return isinstance(layer, tuple(_UPCASTING.values()))


@contextmanager
def stand_ins(module: nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Make a module traceable as float32: uninitialised tensors replace its float16 weights.

    Yields: the float16 weights by the address of the tensor that replaces each.
    """
    kept: list[Any] = [layer for layer in module.modules() if upcasts(layer)]
    before = [(type(layer), layer.weight) for layer in kept]
    try:
        for layer in kept:
            layer.__class__ = type(layer).__base__
            layer.weight = nn.Parameter(torch.empty(layer.weight.shape), requires_grad=False)
        addresses = [layer.weight.data_ptr() for layer in kept]
        yield dict(zip(addresses, (weight.data.contiguous() for _, weight in before), strict=True))
    finally:
        for layer, (kind, weight) in zip(kept, before, strict=True):
            layer.__class__, layer.weight = kind, weight


def free_weights(module: Any) -> None:
    """Free the weights' memory, although torch.export keeps the parameters in its caches."""
    for weight in () if module is None else (*module.parameters(), *module.buffers()):
        weight.data = torch.empty(0, dtype=weight.dtype)
    gc.collect()
