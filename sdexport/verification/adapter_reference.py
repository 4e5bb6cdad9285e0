"""Reference outputs of graphs that take adapters: PyTorch's, with adapters of random weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.session import Feeds
from sdexport.graphs.adapter_graphs import adapter_graphs_of
from sdexport.graphs.wrappers import Part
from sdexport.runtime.models.components import ADAPTER_GRAPHS, MODEL, AdapterKind
from sdexport.verification.controlnet_reference import residuals_added
from sdexport.verification.ip_reference import ip_added
from sdexport.verification.lora_reference import lora_added
from sdexport.verification.reference import TorchSession, record_component, record_token_graphs
from sdexport.verification.t2i_reference import t2i_added

_ADDED: Mapping[AdapterKind, Callable[[Part, Any], AbstractContextManager[Feeds]]] = {
    AdapterKind.LORA: lora_added,
    AdapterKind.CONTROLNET: residuals_added,
    AdapterKind.T2I_ADAPTER: t2i_added,
    AdapterKind.IP_ADAPTER: ip_added,
}
"""Each changes the module that a part wraps as its adapter does, and gives the inputs with which
the graph does the same."""


def record_adapter_graphs(
    session: TorchSession,
    part: Part,
    module: Any,
    folder: Path,
    kinds: Collection[AdapterKind],
    input_ids: np.ndarray | None = None,
) -> None:
    """Write the inputs and PyTorch's outputs of a component's graphs that take adapters.

    Args:
      session: of `module`. kinds: of `kinds_of`. input_ids: see record_component.
    """
    for name, added in adapter_graphs_of(part.role, kinds).items():
        if ADAPTER_GRAPHS[name] != MODEL:
            continue  # recorded with the others
        with ExitStack() as stack:
            inputs: dict[str, np.ndarray] = {}
            for kind in added:
                inputs |= stack.enter_context(_ADDED[kind](part, module))
            path = folder / f"{part.name}.{name}.npz"
            record_component(session, part, path, input_ids, further=inputs)
            if input_ids is not None:
                record_token_graphs(session, module, folder, input_ids, lora=inputs)
