"""A PyTorch module that replays a CUDA graph of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

WARM_UP = 3


class GraphedForward:
    """A `forward` that copies its tensors into fixed ones and replays a graph, one for each shape.

    The tensors that it returns are overwritten by the next call. On a CPU (a dry run) the copies
    are made and the module is called.

    Source: the section "CUDA Graphs" of PyTorch's notes on CUDA semantics.
    """

    def __init__(self, forward: Callable[..., Any], device: str) -> None:
        self._forward, self._device = forward, device
        self._captured: dict[Any, tuple[list[torch.Tensor], Callable[[], Any]]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        values, structure = pytree.tree_flatten((args, kwargs))
        tensors = [v for v in values if isinstance(v, torch.Tensor)]
        others = tuple(None if isinstance(v, torch.Tensor) else repr(v) for v in values)
        mode = torch.is_inference_mode_enabled()
        forms = tuple((tuple(t.shape), t.dtype, t.device) for t in tensors)
        key = mode, str(structure), others, forms
        if key not in self._captured:
            self._captured[key] = self._capture(values, structure)
        fixed, replay = self._captured[key]
        for target, tensor in zip(fixed, tensors, strict=True):
            target.copy_(tensor)
        return replay()

    def _capture(
        self, values: list[Any], structure: Any
    ) -> tuple[list[torch.Tensor], Callable[[], Any]]:
        copies = [v.clone() if isinstance(v, torch.Tensor) else v for v in values]
        args, kwargs = pytree.tree_unflatten(copies, structure)
        fixed = [v for v in copies if isinstance(v, torch.Tensor)]
        if self._device != "cuda":
            return fixed, lambda: self._forward(*args, **kwargs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._forward(*args, **kwargs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._forward(*args, **kwargs)

        def replay() -> Any:
            graph.replay()
            return outputs

        return fixed, replay
