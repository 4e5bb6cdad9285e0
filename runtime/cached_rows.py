"""The outputs of the text encoders for the last rows of tokens."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdexport.engines import Session
from sdexport.engines.run_record import note_runs, recorded_runs
from sdexport.engines.session import Feeds
from sdexport.runtime.component_sessions import finite


class _Outputs(NamedTuple):
    """The outputs of a text encoder, and what built file it ran; see run_record."""

    arrays: list[np.ndarray]
    ran: frozenset[str]


class RowCache:
    """The outputs of the text encoders for the last rows of tokens."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._cached: OrderedDict[tuple[object, ...], _Outputs] = OrderedDict()
        self._lock = threading.Lock()

    def outputs(
        self,
        name: str,
        session: Session,
        row: Feeds,
        outputs: Sequence[str],
        adapted: tuple[object, ...] = (),
    ) -> list[np.ndarray]:
        """Run the text encoder on a row, unless its outputs are cached; they must not be modified.

        Args:
          adapted: what they depend on besides.
        Raises: EngineError: the encoder failed, or an output holds NaN or infinity.
        """
        key = (name, session.refits, adapted, *outputs, *((k, v.tobytes()) for k, v in row.items()))
        with self._lock:
            if key in self._cached:
                self._cached.move_to_end(key)
            cached = self._cached.get(key)
        if cached is None:
            with recorded_runs() as ran:
                results = session.run(row)
            arrays = [finite(results[output], name, "the prompt") for output in outputs]
            cached = _Outputs(arrays, frozenset(ran))
            with self._lock:
                self._cached[key] = cached
                while len(self._cached) > self._limit:
                    self._cached.popitem(last=False)
        note_runs(cached.ran)
        return cached.arrays
