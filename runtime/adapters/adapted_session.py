"""A session of a graph that takes LoRAs, with their factors bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdexport.engines.session import BoundSession, Feeds, GraphSource, Session, WrappedSession
from sdexport.runtime.adapters.lora_inputs import is_lora_input


class AdaptedSession(WrappedSession):
    """The session without the inputs that are bound; closing it leaves the other one open.

    Args:
      session: of a graph that takes LoRAs.
      factors: those that are the same for all rows of the batch; others are inputs of this session.
    """

    def __init__(self, session: Session, factors: Feeds) -> None:
        rest = [spec for spec in session.inputs if spec.name not in factors]
        super().__init__(session, rest)
        self._factors = dict(factors)

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._check_open()
        return self._parent.run({**self._factors, **feeds})

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        if shared and any(map(is_lora_input, constants)):
            # Rows with factors of their own: a backend would compute what both halves of the batch
            # have in common from half of the rows.
            return BoundSession(self, constants, shared)
        return self._parent.bind(shared=shared, **self._factors, **constants)

    def source(self, feeds: Feeds) -> GraphSource:
        return self._parent.source({**self._factors, **feeds})

    def _release(self) -> None:
        self._factors = {}
