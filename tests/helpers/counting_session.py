"""A session that notes the batch sizes of its calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdexport.engines import SessionBase
from sdexport.engines.session import Feeds


class Counting(SessionBase):
    """Calls another session and records the batch sizes."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner.name, inner.inputs, inner.outputs)
        self.inner, self.batches = inner, []

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self.batches.append(len(next(iter(feeds.values()))))
        return self.inner.run(feeds)
