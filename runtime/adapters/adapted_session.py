"""A session of a graph that takes LoRAs, with their factors bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sdexport.engines.session import BoundSession, Feeds, GraphSource, Session, SessionBase
from sdexport.runtime.adapters.lora_inputs import is_lora_input


class AdaptedSession(SessionBase):
    """The session without the inputs that are bound; closing it leaves the other one open.

    Args:
      session: of a graph that takes LoRAs.
      factors: those that are the same for all rows of the batch; others are inputs of this session.
    """

    def __init__(self, session: Session, factors: Feeds) -> None:
        rest = [spec for spec in session.inputs if spec.name not in factors]
        super().__init__(session.name, rest, session.outputs)
        self._session, self._factors = session, dict(factors)

    @property
    def refits(self) -> int:
        return self._session.refits

    @property
    def mapped(self) -> int | None:
        return self._session.mapped

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._check_open()
        return self._session.run({**self._factors, **feeds})

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        if shared and any(map(is_lora_input, constants)):
            # Rows with factors of their own: a backend would compute what both halves of the batch
            # have in common from half of the rows.
            return BoundSession(self, constants, shared)
        return self._session.bind(shared=shared, **self._factors, **constants)

    def source(self, feeds: Feeds) -> GraphSource:
        return self._session.source({**self._factors, **feeds})

    def nearest_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return self._session.nearest_sizes(sizes)

    def trim(self, room: int | None = None) -> bool:
        return self._session.trim(room)

    def _release(self) -> None:
        self._factors = {}
