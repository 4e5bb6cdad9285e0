"""A denoiser that another graph replaces in some of the steps: its UNet with a ControlNet-XS."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sdexport.engines.session import Feeds, Session, SessionBase, TensorSpec, WrappedSession
from sdexport.runtime.adapters.controlled_session import embedding_name, run_bound
from sdexport.runtime.expected_calls import STEP
from sdexport.runtime.models.controlnet import CONDITIONING_SCALE, EMBEDDING

_EMBEDDING = embedding_name(0)


class ReplacedSession(SessionBase):
    """The denoiser; it also takes the index of the step and the embedded control image.

    Args:
      name, inputs, outputs: of the denoiser.
      steps: in which the other graph runs. scale: of what the ControlNet adds.
      channels: of the embedded control image.
      replacement, denoiser: return the sessions of both graphs, which stay open when this one is
        closed. Each is called when a step needs it.
      leave_room: called before another graph than in the step before runs, with whether that is
        the replacement; and with False after the last step.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        steps: frozenset[int],
        scale: float,
        channels: int,
        replacement: Callable[[], Session],
        denoiser: Callable[[], Session],
        leave_room: Callable[[bool], object] = lambda to_replacement: None,
    ) -> None:
        batch = next(spec.shape[0] for spec in inputs if spec.name == "sample")
        shape = (batch, channels, f"{EMBEDDING}_height", f"{EMBEDDING}_width")
        further = (
            TensorSpec(STEP, "int64", (1,)),
            TensorSpec(_EMBEDDING, "float32", shape),
        )
        super().__init__(name, (*inputs, *further), outputs)
        self.steps, self.scale = steps, np.full(1, scale, np.float32)
        self.replacement, self.denoiser = replacement, denoiser
        self._leave_room = leave_room
        self._last: bool | None = None

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        return _BoundReplaced(self, shared, constants)

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._check_open()
        return run_bound(self, feeds)

    def switch(self, to_replacement: bool) -> None:
        """Make room for the graph that runs next, if another one ran before."""
        if self._last is not to_replacement:
            self._leave_room(to_replacement)
            self._last = to_replacement


class _BoundReplaced(WrappedSession):
    """Both graphs with their constant inputs bound, each when it is first needed."""

    def __init__(self, session: ReplacedSession, shared: Sequence[str], constants: Feeds) -> None:
        super().__init__(session, [s for s in session.inputs if s.name not in constants])
        self._session, self._shared, self._constants = session, tuple(shared), dict(constants)
        self._bound: dict[bool, Session] = {}

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._check_open()
        feeds = dict(feeds)
        replaced = int(feeds.pop(STEP)[0]) in self._session.steps
        self._session.switch(replaced)
        if replaced not in self._bound:
            self._bound[replaced] = self._bind(replaced=replaced)
        bound = self._bound[replaced]
        spec = next(spec for spec in bound.inputs if spec.name == "timestep")
        feeds["timestep"] = np.full((1,) * len(spec.shape), feeds["timestep"].flat[0], spec.dtype)
        return bound.run(feeds)

    def _bind(self, *, replaced: bool) -> Session:
        session = self._session.replacement() if replaced else self._session.denoiser()
        names = {spec.name for spec in session.inputs}
        constants = {name: value for name, value in self._constants.items() if name in names}
        if replaced:
            constants[EMBEDDING] = self._constants[_EMBEDDING]
            constants[CONDITIONING_SCALE] = self._session.scale
        return session.bind(shared=self._shared, **constants)

    def _release(self) -> None:
        self._constants = {}
        for session in self._bound.values():
            session.close()
        self._session.switch(False)
