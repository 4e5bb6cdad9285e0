"""How many bytes of an engine's weights stay on the GPU; the rest are streamed from the host."""

from __future__ import annotations

import logging
from typing import Any

from sdexport.engines import cuda_device
from sdexport.engines.trt.library_calls import LibraryCalls

_log = logging.getLogger(__name__)
RESERVE = 256 * 2**20
"""Bytes left free for buffers of inputs and outputs, and for other programs."""


def set_weight_budget(engine: Any, calls: LibraryCalls) -> int:
    """Let an engine keep as much of its weights on the GPU as fits next to its scratch memory.

    The library's own proposal is not used: its Python binding returns the low 32 bits, as a signed
    number, so that 5 GB become 705 MB.

    Returns: the bytes that stay on the GPU.
    Raises: EngineError: the library rejects the budget.
    """
    weights = int(engine.streamable_weights_size)
    needed = int(engine.device_memory_size_v2) + int(engine.weight_streaming_scratch_memory_size)
    free = cuda_device.free_memory()
    budget = max(0, min(weights, free - needed - RESERVE))
    failure = f"rejects a budget of {budget} bytes for {weights} bytes of weights"
    calls.done(failure, setattr, engine, "weight_streaming_budget_v2", budget)
    actual = int(engine.weight_streaming_budget_v2)
    if actual != budget:
        raise calls.error(failure, f"it has {actual} bytes")
    _log.info("%d of %d bytes of weights stay on the GPU", budget, weights)
    return budget
