"""The ControlNets of one call: their packages opened, and their control images embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from sdexport.engines import Session
from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.guarded_files import parsing
from sdexport.engines.messages import shown
from sdexport.engines.session import TensorSpec
from sdexport.runtime.adapters.adapter_store import (
    AdapterStore,
    OpenedAdapters,
    recorded_identity,
)
from sdexport.runtime.adapters.controlled_images import ControlledImages
from sdexport.runtime.adapters.controlled_session import (
    CONDITIONAL,
    ControlledSession,
    StepControlNet,
    embedding_name,
)
from sdexport.runtime.adapters.controlnet_argument import NAME, ControlNet
from sdexport.runtime.adapters.controlnet_runs import ControlRun, control_runs, mode_number, pools
from sdexport.runtime.expected_calls import ImageCall
from sdexport.runtime.images.control_images import ControlImages
from sdexport.runtime.images.input_digest import identify
from sdexport.runtime.images.recorded_values import RecordedControlNet
from sdexport.runtime.models.components import AdapterKind, adapter_graph, is_residual
from sdexport.runtime.models.control_types import types_of
from sdexport.runtime.models.controlnet import (
    CONDITIONING_SCALE,
    CONTROL_EMBEDDING,
    CONTROL_IMAGE,
    CONTROL_TYPE,
    CONTROLNET,
    EMBEDDING,
)
from sdexport.runtime.packages.package import Package

_MAPS = ("sample", CONTROL_IMAGE, EMBEDDING)
"""Inputs and outputs with channels, height and width; residuals are others."""
_CHECKED_ELSEWHERE = ("timestep", EMBEDDING, CONTROL_TYPE)


class AppliedControlNets:
    """What the ControlNets of a call change.

    Args:
      store: of the pipeline. package: of the model.
      nets: at least one. images: the control images of each.
    Raises: InvalidArgumentError: a ControlNet that does not fit the model, or control images that
      cannot be shared out. PackageError: the model's package takes no
      ControlNets. See Package.load.
    """

    kind = AdapterKind.CONTROLNET
    replacement = None

    def __init__(
        self,
        store: AdapterStore,
        package: Package,
        nets: Sequence[ControlNet],
        images: Sequence[ControlImages],
        call: ControlledImages,
    ) -> None:
        self._call = call
        specs = package.graph_inputs(adapter_graph(package.family.denoiser, {self.kind}))
        for opened in images:
            check_count(len(opened), call.count)
        self._embeddings: list[np.ndarray] | None = None
        check = partial(_check_fits, package, {spec.name: spec for spec in specs})
        self._opened = OpenedAdapters(store, [net.package for net in nets], self.kind, check)
        self.packages = self._opened.packages
        try:
            self.recorded = tuple(map(recorded_controlnet, nets, self.packages))
            self._runs = control_runs(tuple(self._opened), nets, images)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the packages; closing twice is allowed."""
        self._opened.close()

    def open(self, call: ImageCall | None) -> None:
        """Open the ControlNets, as they run in the steps; see CallAdapters.open."""
        for run in self._runs:
            expected = call if any(run.phases(self._call.steps).values()) else None
            if expected is not None and self._guesses(run):
                expected = replace(expected, guided=False)
            run.opened.sessions.open(CONTROLNET.name, expected)

    def wrap(self, session: Session) -> Session:
        """The denoiser with the ControlNets.

        Args:
          session: of its graph that takes residuals.
        """
        nets: list[StepControlNet] = []
        for run in self._runs:
            nets += run.step_nets(self._call.steps, guess_mode=self._guesses(run))
        return ControlledSession(session, nets)

    def conditioning(self, *, guided: bool) -> dict[str, np.ndarray]:
        """Further inputs of that session, a row for each row of the embeddings; see `denoise`."""
        if self._embeddings is None:
            self._embeddings = [each for run in self._runs for each in run.embeddings(self._call)]
            for opened in self._opened:
                opened.sessions.finish(CONTROL_EMBEDDING.name)
        conditional = np.ones(self._call.count, np.float32)
        rows = {embedding_name(i): each for i, each in enumerate(self._embeddings)}
        if guided:
            rows = {name: np.concatenate([each, each]) for name, each in rows.items()}
            conditional = np.concatenate([np.zeros_like(conditional), conditional])
        return {**rows, CONDITIONAL: conditional}

    def _guesses(self, run: ControlRun) -> bool:
        """Whether a ControlNet runs in guess mode: as in diffusers, the first one may decide it."""
        return run.nets[0].guess_mode or pools(self.packages[0])


def recorded_controlnet(net: ControlNet, package: Package) -> RecordedControlNet:
    """What the images' settings say of a ControlNet.

    Raises: InvalidArgumentError: see mode_number.
    """
    return RecordedControlNet(
        *recorded_identity(package),
        identify(net.image) or (),
        float(net.scale),
        float(net.start),
        float(net.end),
        bool(net.guess_mode),
        mode_number(net, package),
    )


def check_count(images: int, count: int) -> None:
    """Raises: InvalidArgumentError: control images that cannot be shared out."""
    if count % images:
        raise InvalidArgumentError(
            f"{NAME}: got {images} control images to generate {count} images; give one for all, or "
            "one for each prompt"
        )


def _check_fits(package: Package, specs: dict[str, TensorSpec], adapter: Package) -> None:
    """Raises: InvalidArgumentError: the ControlNet was made for another model. PackageError: one of
    the packages is damaged.
    """
    record = adapter.manifest.components[CONTROLNET.name]
    what = f"{NAME}: {adapter.folder} does not fit {package.folder}"
    unit = package.manifest.downscale
    if adapter.manifest.downscale != unit:
        raise InvalidArgumentError(
            f"{what}: its latents are {adapter.manifest.downscale} times smaller than the image, "
            f"those of the model {unit} times"
        )
    with parsing(PackageError, adapter.folder):
        check_embedding(adapter)
        given = {spec.name: channels_of(spec) for spec in record.outputs}
        taken = {
            spec.name: channels_of(spec)
            for spec in record.inputs
            if spec.name not in _CHECKED_ELSEWHERE
        }
    with parsing(PackageError, package.folder):
        residuals = {name: channels_of(spec) for name, spec in specs.items() if is_residual(name)}
        known = {name: channels_of(specs[name]) for name in taken if name in specs}
    known["sample"] = package.manifest.latent_channels
    if residuals != given:
        raise InvalidArgumentError(
            f"{what}: it gives {_channels(given)}, and the model takes {_channels(residuals)}; it "
            "was made for a model of another family"
        )
    for name, got in taken.items():
        if name not in known:
            raise InvalidArgumentError(
                f"{what}: it takes {name}, which the model does not have; it was made for a "
                "model of another family"
            )
        if known[name] != got:
            raise InvalidArgumentError(
                f"{what}: its {name} has {got} channels, that of the model {known[name]}; it was "
                "made for a model of another family"
            )


def check_embedding(adapter: Package) -> None:
    """Raises: ValueError, KeyError: the network does not take what the control image becomes."""
    first, second = (
        adapter.manifest.components[spec.name] for spec in (CONTROL_EMBEDDING, CONTROLNET)
    )
    inputs = {spec.name: spec for spec in first.inputs}
    (embedding,) = first.outputs
    channels_of(inputs.pop(CONTROL_IMAGE))
    types = types_of(second.inputs)
    if types != types_of(first.inputs):
        raise ValueError(f"{CONTROLNET.name} has other types of control images than there are")
    if inputs.keys() != ({CONTROL_TYPE, CONDITIONING_SCALE} if types else set()):
        raise ValueError(f"{CONTROL_EMBEDDING.name} takes {', '.join(map(shown, inputs))}")
    taken = {spec.name: spec for spec in second.inputs}[embedding.name]
    if channels_of(embedding) != channels_of(taken):
        raise ValueError(f"{CONTROLNET.name} takes another {EMBEDDING} than there is")


def channels_of(spec: TensorSpec) -> int:
    """The channels or the width of an input or output.

    Raises: ValueError: it has none.
    """
    is_map = is_residual(spec.name) or spec.name in _MAPS
    rank = len(spec.shape)
    channels = spec.shape[1 if is_map else -1] if rank > 1 else None
    if not isinstance(channels, int) or (is_map and rank != 4):
        raise ValueError(f"{spec.name:.80} has the shape {shown(spec.shape)}")
    return channels


def _channels(residuals: dict[str, int]) -> str:
    return f"{len(residuals)} residuals of {', '.join(map(str, residuals.values()))} channels"
