"""A denoiser whose graph takes more kinds of adapters than a call uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdexport.engines.session import Feeds, GraphSource, Session, TensorSpec, WrappedSession
from sdexport.runtime.adapters.ip_groups import no_images
from sdexport.runtime.adapters.t2i_inputs import is_t2i_input
from sdexport.runtime.expected_calls import level_sizes, size_of


class UnusedInputs(WrappedSession):
    """The session without inputs for T2I-Adapters or IP-Adapters, which then have no effect.

    Args:
      session: closing this session leaves it open.
      prefixes: what the names of these inputs begin with.
    """

    def __init__(self, session: Session, prefixes: tuple[str, ...]) -> None:
        self._unused = [spec for spec in session.inputs if spec.name.startswith(prefixes)]
        rest = [spec for spec in session.inputs if spec not in self._unused]
        super().__init__(session, rest)

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        return _Bound(self._parent, self._unused, self.inputs, shared, constants)

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._check_open()
        return self._parent.run({**feeds, **neutral(self._unused, feeds["sample"].shape)})

    def source(self, feeds: Feeds) -> GraphSource:
        return self._parent.source({**feeds, **neutral(self._unused, feeds["sample"].shape)})


class _Bound(WrappedSession):
    """Bound when the size of the latents is known: with the first step."""

    def __init__(
        self,
        session: Session,
        unused: Sequence[TensorSpec],
        inputs: Sequence[TensorSpec],
        shared: Sequence[str],
        constants: Feeds,
    ) -> None:
        rest = [spec for spec in inputs if spec.name not in constants]
        super().__init__(session, rest)
        self._unused = unused
        self._shared, self._constants = tuple(shared), dict(constants)
        self._bound: Session | None = None

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._check_open()
        if self._bound is None:
            rows, *others = feeds["sample"].shape
            rows *= 2 if "sample" in self._shared else 1
            unused = neutral(self._unused, (rows, *others))
            self._bound = self._parent.bind(shared=self._shared, **self._constants, **unused)
        return self._bound.run(feeds)

    def _release(self) -> None:
        self._constants = {}
        if self._bound is not None:
            self._bound.close()


def neutral(specs: Sequence[TensorSpec], sample: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Values without effect for inputs of T2I-Adapters and IP-Adapters.

    Args:
      sample: shape of the latents, (rows, channels, height, width).
    """
    found = zero_residuals([spec for spec in specs if is_t2i_input(spec.name)], sample)
    images = [spec for spec in specs if spec.name not in found]
    rows, _, height, width = sample
    return found | (no_images(images, rows, level_sizes(height, width)) if images else {})


def zero_residuals(specs: Sequence[TensorSpec], sample: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Residuals that add nothing, for inputs of ControlNets or T2I-Adapters.

    Args:
      sample: shape of the latents, (rows, channels, height, width).
    Raises: PackageError: a dimension whose meaning is not known.
    """
    rows, _, height, width = sample
    sizes = {"batch": rows, "height": height, "width": width, **level_sizes(height, width)}
    return {
        spec.name: np.zeros([size_of(spec.name, each, sizes) for each in spec.shape], np.float32)
        for spec in specs
    }
