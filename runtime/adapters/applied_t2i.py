"""The T2I-Adapters of one call: their features, and the steps in which they are added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.guarded_files import parsing
from sdexport.engines.session import Feeds, Session, TensorSpec, WrappedSession
from sdexport.runtime import checks
from sdexport.runtime.adapters.adapter_store import (
    AdapterStore,
    OpenAdapter,
    OpenedAdapters,
    recorded_identity,
)
from sdexport.runtime.adapters.controlled_images import ControlledImages
from sdexport.runtime.adapters.image_adapter_arguments import T2I_NAME, T2IAdapter
from sdexport.runtime.adapters.t2i_features import (
    check_fits,
    features_of,
    grey,
    summed,
)
from sdexport.runtime.adapters.t2i_inputs import residual_specs
from sdexport.runtime.expected_calls import STEP, ImageCall, level_sizes, size_of
from sdexport.runtime.images.control_images import ControlImages
from sdexport.runtime.images.input_digest import identify
from sdexport.runtime.images.recorded_values import RecordedT2IAdapter
from sdexport.runtime.models.components import AdapterKind, adapter_graph
from sdexport.runtime.models.t2i_adapter import CONTROL_IMAGE, T2I_ADAPTER
from sdexport.runtime.packages.package import Package

_RGB = 3
_MOST_DOWNSCALE = 1024
"""Pixels of an image, in width and height, for one of its smallest features."""


class AppliedT2IAdapters:
    """What the T2I-Adapters of a call change.

    Args:
      store: of the pipeline. package: of the model.
      adapters: at least one. images: the control images of each.
    Raises: InvalidArgumentError: an adapter that does not fit the model or the call. PackageError:
      the model's package takes no T2I-Adapters. See Package.load.
    """

    kind = AdapterKind.T2I_ADAPTER
    replacement = None

    def __init__(
        self,
        store: AdapterStore,
        package: Package,
        adapters: Sequence[T2IAdapter],
        images: Sequence[ControlImages],
        call: ControlledImages,
    ) -> None:
        self._adapters, self._images, self._call = adapters, images, call
        for each in images:
            if len(each) not in (1, call.count):
                raise InvalidArgumentError(
                    f"{T2I_NAME}: got {len(each)} control images to generate {call.count} images; "
                    "give one for all, or one for each"
                )
        self._unit = package.manifest.downscale
        self._specs = _unet_residuals(package)
        self._features: list[dict[str, np.ndarray]] | None = None
        self._phases = _phases([each.factor for each in adapters], call)
        sources = [each.package for each in adapters]
        self._opened = OpenedAdapters(store, sources, self.kind, self._check)
        self.packages = self._opened.packages
        self.recorded = tuple(map(_recorded, adapters, self.packages))

    def close(self) -> None:
        """Release the packages; closing twice is allowed."""
        self._opened.close()

    def open(self, call: ImageCall | None) -> None:
        """Nothing of it runs in the steps."""

    def wrap(self, session: Session) -> Session:
        """The denoiser with the adapters.

        Args:
          session: of its graph that takes residuals.
        """
        if len(self._phases) == 1:
            return session
        return PhasedSession(session, self._specs, [end for end, _ in self._phases])

    def conditioning(self, *, guided: bool) -> dict[str, np.ndarray]:
        """Further inputs of that session, a row for each row of the embeddings; see `denoise`.

        Releases the packages: they do not run in the steps.
        """
        if self._features is None:
            self._features = [
                self._computed(opened, images)
                for opened, images in zip(self._opened, self._images, strict=True)
            ]
            self.close()
        rows = self._call.count * (2 if guided else 1)
        found: dict[str, np.ndarray] = {}
        for index, (_, active) in enumerate(self._phases):
            chosen = [
                (self._rows(self._features[i], rows), self._adapters[i].scale) for i in active
            ]
            residuals = summed(chosen, self._specs, rows, self._sizes())
            found |= {phase_name(name, index): value for name, value in residuals.items()}
        return found

    def _computed(self, opened: OpenAdapter, images: ControlImages) -> dict[str, np.ndarray]:
        """The features of the control images, for each of them."""
        call, session = self._call, opened.sessions.session(T2I_ADAPTER.name)
        samples = images.samples(
            call.width, call.height, _RGB, mode=call.resize_mode, crops=call.crops, count=call.count
        )
        is_grey = _channels(session.inputs) == 1
        return features_of(session, grey(samples) if is_grey else samples, call.max_batch)

    def _rows(self, features: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        """The features of each row: one image for all, or those of the images twice if guided."""
        return {
            name: value if len(value) == 1 else np.concatenate([value] * (rows // len(value)))
            for name, value in features.items()
        }

    def _sizes(self) -> list[tuple[int, ...]]:
        """(channels, height, width) of each residual."""
        height, width = self._call.height // self._unit, self._call.width // self._unit
        sizes = {"height": height, "width": width, **level_sizes(height, width)}
        return [
            tuple(size_of(spec.name, each, sizes) for each in spec.shape[1:])
            for spec in self._specs
        ]

    def _check(self, adapter: Package) -> None:
        name, record = str(adapter.folder), adapter.manifest.components[T2I_ADAPTER.name]
        check_fits(name, record.outputs, self._specs)
        config = adapter.config(T2I_ADAPTER.name)
        with parsing(PackageError, adapter.folder / T2I_ADAPTER.name / "config.json"):
            factor = config.get("downscale_factor", 8)
            unit = checks.integer("downscale_factor", factor, 1, _MOST_DOWNSCALE)
        with parsing(PackageError, name):
            _channels(record.inputs)
        height, width = self._call.height, self._call.width
        if height % unit or width % unit:
            raise InvalidArgumentError(
                f"t2i_adapters: {name} takes sizes that are multiples of {unit}, "
                f"got {width}x{height}"
            )


def _phases(factors: Sequence[float], call: ControlledImages) -> list[tuple[int, list[int]]]:
    """The parts of the loop in which the same adapters have an effect, and which those are.

    Returns: for each the index of the first step after it, and the numbers of the adapters.
    """
    ends = [int(call.num_inference_steps * factor) for factor in factors]
    count = len(call.steps)
    bounds = sorted({end for end in ends if 0 < end < count} | {count})
    return [
        (
            call.steps[bound - 1] + 1,
            [i for i, end in enumerate(ends) if end >= bound or end >= count],
        )
        for bound in bounds
    ] or [(0, [])]


def phase_name(residual: str, phase: int) -> str:
    """The input of a residual in a part of the loop: the graph's own in the first one."""
    return f"{residual}.{phase}" if phase else residual


class PhasedSession(WrappedSession):
    """The session of a denoiser whose residuals change once or more during the loop.

    Args:
      session: of a graph that takes residuals; closing this session leaves it open.
      residuals: those inputs.
      ends: of each part of the loop, the index of the first step after it.
    """

    def __init__(
        self, session: Session, residuals: Sequence[TensorSpec], ends: Sequence[int]
    ) -> None:
        self._names = [spec.name for spec in residuals]
        further = [
            TensorSpec(phase_name(spec.name, phase), spec.dtype, spec.shape)
            for phase in range(1, len(ends))
            for spec in residuals
        ]
        known = {spec.name for spec in session.inputs}
        step = [] if STEP in known else [TensorSpec(STEP, "int64", (1,))]
        super().__init__(session, [*session.inputs, *further, *step])
        self._ends, self._passes_step = tuple(ends), STEP in known

    def bind(self, *, shared: Sequence[str] = (), **constants: np.ndarray) -> Session:
        return _BoundPhases(self, shared, constants)

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._check_open()
        steps = {name: feeds[name] for name in ("sample", "timestep", STEP)}
        constants = {name: value for name, value in feeds.items() if name not in steps}
        with _BoundPhases(self, (), constants) as bound:
            return bound.run(steps)

    def bound(self, phase: int, shared: Sequence[str], constants: Feeds) -> Session:
        """The denoiser with the residuals of a part of the loop, and all other constants."""
        later = {
            phase_name(name, each) for each in range(1, len(self._ends)) for name in self._names
        }
        own = {name: value for name, value in constants.items() if name not in later}
        own |= {name: constants[phase_name(name, phase)] for name in self._names}
        return self._parent.bind(shared=shared, **own)

    def phase_at(self, step: int) -> int:
        """The part of the loop that a step belongs to."""
        last = len(self._ends) - 1
        return next((i for i, end in enumerate(self._ends) if step < end), last)

    def passed(self, feeds: Feeds) -> Feeds:
        """The feeds of a step for the denoiser."""
        return {k: v for k, v in feeds.items() if k != STEP or self._passes_step}


class _BoundPhases(WrappedSession):
    """The denoiser with its constant inputs bound, those of one part of the loop at a time."""

    def __init__(self, parent: PhasedSession, shared: Sequence[str], constants: Feeds) -> None:
        rest = [spec for spec in parent.inputs if spec.name not in constants]
        super().__init__(parent, rest)
        self._phases, self._shared, self._constants = parent, tuple(shared), dict(constants)
        self._bound: tuple[int, Session] | None = None

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self._check_open()
        phase = self._phases.phase_at(int(feeds[STEP][0]))
        if self._bound is None or self._bound[0] != phase:
            self._release()
            self._bound = phase, self._phases.bound(phase, self._shared, self._constants)
        return self._bound[1].run(self._phases.passed(feeds))

    def _release(self) -> None:
        if self._bound is not None:
            self._bound[1].close()
            self._bound = None


def _channels(inputs: Sequence[TensorSpec]) -> int:
    """Those of the image that an adapter takes.

    Raises: ValueError: it takes something else.
    """
    for spec in inputs:
        match spec.shape:
            case (_, (1 | 3) as channels, _, _) if spec.name == CONTROL_IMAGE and len(inputs) == 1:
                return int(channels)
    raise ValueError(f"{T2I_ADAPTER.name} takes {', '.join(map(str, inputs)):.200}, not an image")


def _unet_residuals(package: Package) -> list[TensorSpec]:
    """The residuals among the inputs of the denoiser's graph that takes T2I-Adapters.

    Raises: PackageError: there is none, or it is damaged.
    """
    graph = adapter_graph(package.family.denoiser, {AdapterKind.T2I_ADAPTER})
    with parsing(PackageError, package.model_path(graph)):
        return residual_specs(package.graph_inputs(graph))


def _recorded(adapter: T2IAdapter, package: Package) -> RecordedT2IAdapter:
    return RecordedT2IAdapter(
        *recorded_identity(package),
        identify(adapter.image) or (),
        float(adapter.scale),
        float(adapter.factor),
    )
