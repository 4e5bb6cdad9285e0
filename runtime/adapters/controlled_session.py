"""A denoiser with ControlNets: each step runs them first, and adds what they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sdexport.engines.session import Feeds, Session, TensorSpec, WrappedSession
from sdexport.runtime.adapters.unused_inputs import zero_residuals
from sdexport.runtime.component_sessions import finite
from sdexport.runtime.expected_calls import STEP
from sdexport.runtime.models.components import MID_RESIDUAL, is_residual
from sdexport.runtime.models.controlnet import EMBEDDING

CONDITIONAL = "controlnets.conditional"
"""An input: (rows,) float32, 1 for rows of prompts and 0 for those of negative prompts."""
_EMBEDDING = "controlnets.{}.embedding"


def embedding_name(place: int) -> str:
    """The input for the embedded control image of the ControlNet in this place, a row for each."""
    return _EMBEDDING.format(place)


def run_bound(session: Session, feeds: Feeds) -> dict[str, np.ndarray]:
    """Run a session that computes when it is bound alone, with what is constant for an image bound.

    Args:
      feeds: of a single step.
    """
    step = {name: feeds[name] for name in ("sample", "timestep", STEP) if name in feeds}
    constants = {name: value for name, value in feeds.items() if name not in step}
    with session.bind(shared=(), **constants) as bound:
        return bound.run(step)


@dataclass(frozen=True, eq=False)
class StepControlNet:
    """A ControlNet in the denoising loop.

    scales: by residual. steps: in which it runs. conditional_only: whether it runs on the rows of
    prompts alone, and adds nothing to the others. further: inputs that are the same for all rows,
    without the axis of the batch.
    """

    session: Session
    scales: Mapping[str, np.float32]
    steps: frozenset[int]
    conditional_only: bool
    further: Mapping[str, np.ndarray] = field(default_factory=dict)


class ControlledSession(WrappedSession):
    """The session of a denoiser whose graph takes residuals; they are no inputs any more.

    Args:
      session: of a graph that takes residuals; closing this session leaves it open.
      nets: without any, the residuals are zeros.
    """

    def __init__(self, session: Session, nets: Sequence[StepControlNet]) -> None:
        rest = [spec for spec in session.inputs if not is_residual(spec.name)]
        batch = next(spec.shape[0] for spec in session.inputs if spec.name == "sample")
        if nets:
            rest.append(TensorSpec(STEP, "int64", (1,)))
            rest.append(TensorSpec(CONDITIONAL, "float32", (batch,)))
        for place, net in enumerate(nets):
            spec = next(each for each in net.session.inputs if each.name == EMBEDDING)
            shape = (batch, spec.shape[1], f"{EMBEDDING}_height", f"{EMBEDDING}_width")
            rest.append(TensorSpec(embedding_name(place), spec.dtype, shape))
        super().__init__(session, rest)
        self._nets = tuple(nets)

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        return _BoundControlled(self._parent, self._nets, self.inputs, shared, constants)

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._check_open()
        return run_bound(self, feeds)


class _BoundControlled(WrappedSession):
    """The denoiser and its ControlNets with their constant inputs bound."""

    def __init__(
        self,
        session: Session,
        nets: Sequence[StepControlNet],
        inputs: Sequence[TensorSpec],
        shared: Sequence[str],
        constants: Feeds,
    ) -> None:
        rest = [spec for spec in inputs if spec.name not in constants]
        known = {spec.name for spec in session.inputs}
        own = {name: value for name, value in constants.items() if name in known}
        super().__init__(session.bind(shared=shared, **own), rest)
        self._specs = tuple(spec for spec in session.inputs if is_residual(spec.name))
        self._is_shared = bool(shared)
        self._nothing: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
        self._nets = [
            _BoundNet(net, constants, constants[embedding_name(place)], shared)
            for place, net in enumerate(nets)
        ]

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._check_open()
        feeds = dict(feeds)
        step = int(feeds.pop(STEP)[0]) if STEP in feeds else -1
        sample = feeds["sample"]
        rows = len(sample) * (2 if self._is_shared else 1)
        total: dict[str, np.ndarray] = {}
        for net in self._nets:
            for name, residual in net.residuals(step, sample, feeds["timestep"]).items():
                if net.rows is not None:
                    whole = np.zeros((rows, *residual.shape[1:]), np.float32)
                    whole[net.rows] = residual
                    residual = whole
                if name in total:
                    total[name] += residual
                else:
                    total[name] = residual
        return self._parent.run({**feeds, **(total or self._zeros((rows, *sample.shape[1:])))})

    def _zeros(self, sample: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Residuals of steps in which nothing is added; the same arrays each time."""
        if sample not in self._nothing:
            self._nothing = {sample: zero_residuals(self._specs, sample)}
        return self._nothing[sample]

    def _release(self) -> None:
        self._parent.close()
        for net in self._nets:
            net.close()


class _BoundNet:
    """A ControlNet with its constant inputs bound.

    Attributes:
      rows: those of the batch that it computes; None for all.
    """

    def __init__(
        self, net: StepControlNet, constants: Feeds, embedding: np.ndarray, shared: Sequence[str]
    ) -> None:
        self._net, self._is_shared = net, bool(shared)
        self.rows: np.ndarray | None = None
        if net.conditional_only and not constants[CONDITIONAL].all():
            self.rows = np.flatnonzero(constants[CONDITIONAL])
        specs = {spec.name: spec for spec in net.session.inputs}
        self._channels = int(specs["sample"].shape[1])
        self._timestep = specs["timestep"]
        inputs = {name: constants[name] for name in specs if name in constants}
        inputs[EMBEDDING] = embedding
        for name, value in net.further.items():
            inputs[name] = np.repeat(value[None], len(embedding), axis=0)
        if self.rows is not None:
            inputs = {name: value[self.rows] for name, value in inputs.items()}
        self._bound: Session | None = None
        if self.rows is None or len(self.rows):
            doubles = self._is_shared and self.rows is None
            self._bound = net.session.bind(shared=shared if doubles else (), **inputs)

    def residuals(self, step: int, sample: np.ndarray, timestep: np.ndarray) -> Feeds:
        """What it adds in a step, scaled, for its rows; empty if it adds nothing.

        Args:
          sample: the denoiser's; of one half of the batch if that is shared.
        """
        if step not in self._net.steps or self._bound is None:
            return {}
        if self.rows is not None:
            count = len(sample)
            sample = sample[self.rows % count if self._is_shared else self.rows]
        time = np.full((1,) * len(self._timestep.shape), timestep.flat[0], self._timestep.dtype)
        feeds = {"sample": np.ascontiguousarray(sample[:, : self._channels]), "timestep": time}
        outputs = self._bound.run(feeds)
        finite(outputs[MID_RESIDUAL], self._bound.name, f"step {step}")
        for name, residual in outputs.items():
            if self._net.scales[name] != 1:
                residual *= self._net.scales[name]
        return outputs

    def close(self) -> None:
        """Release the bound inputs; the ControlNet's own session stays open."""
        if self._bound is not None:
            self._bound.close()
