"""The ControlNet-XS of a call: its package holds a UNet of its own, which replaces the model's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from sdexport.engines import Session
from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.guarded_files import parsing
from sdexport.engines.session import TensorSpec
from sdexport.runtime.adapters.adapter_store import AdapterStore, OpenAdapter
from sdexport.runtime.adapters.applied_controlnets import (
    channels_of,
    check_count,
    check_embedding,
    recorded_controlnet,
)
from sdexport.runtime.adapters.call_adapters import Replacement, SessionOf
from sdexport.runtime.adapters.controlled_images import ControlledImages
from sdexport.runtime.adapters.controlled_session import embedding_name
from sdexport.runtime.adapters.controlnet_argument import NAME, ControlNet
from sdexport.runtime.adapters.controlnet_runs import ControlRun, steps_of
from sdexport.runtime.adapters.followed_images import FollowedImages
from sdexport.runtime.adapters.replaced_session import ReplacedSession
from sdexport.runtime.adapters.xs_base import check_base
from sdexport.runtime.component_sessions import ComponentSessions
from sdexport.runtime.expected_calls import ImageCall
from sdexport.runtime.images.control_images import ControlImages
from sdexport.runtime.models.components import AdapterKind
from sdexport.runtime.models.controlnet import (
    CONDITIONING_SCALE,
    CONTROL_EMBEDDING,
    CONTROLNET_XS,
    EMBEDDING,
)
from sdexport.runtime.packages.package import Package


def check_alone(folder: object, following: FollowedImages, *, with_loras: bool) -> None:
    """Check that a ControlNet-XS is the only adapter that changes the denoiser.

    Args:
      folder: of its package. with_loras: whether LoRAs change the denoiser.
    Raises: InvalidArgumentError: there are others.
    """
    others = {
        "other ControlNets": len(following.controlnets) > 1,
        "T2I-Adapters": following.t2i_adapters,
        "IP-Adapters": following.ip_adapters,
        "LoRAs that change the UNet": with_loras,
    }
    for name, is_used in others.items():
        if is_used:
            raise InvalidArgumentError(
                f"{NAME}: {folder} is a ControlNet-XS, whose package holds a UNet that takes no "
                f"{name}; use it without them"
            )


class AppliedControlNetXS:
    """What the ControlNet-XS of a call changes.

    Args:
      store: of the pipeline. package: of the model. images: the control images.
      components: sessions of the model.
    Raises: InvalidArgumentError: it does not fit the model, control images that cannot be shared
      out, or a setting that it does not have. PackageError: one of the packages is damaged. See
      Package.load.
    """

    kind = AdapterKind.CONTROLNET

    def __init__(
        self,
        store: AdapterStore,
        package: Package,
        net: ControlNet,
        images: ControlImages,
        call: ControlledImages,
        components: ComponentSessions,
    ) -> None:
        self._net, self._call, self._components = net, call, components
        self._inputs = package.graph_inputs(package.family.denoiser)
        self._steps = steps_of(call.steps, net)
        self._embedding: np.ndarray | None = None
        self._opened: OpenAdapter | None = store.open(net.package, self.kind)
        try:
            adapter = self._opened.package
            self.packages: tuple[Package, ...] = (adapter,)
            if net.guess_mode:
                raise InvalidArgumentError(
                    f"{NAME}: {adapter.folder} is a ControlNet-XS, which has no guess_mode"
                )
            self.recorded = (recorded_controlnet(net, adapter),)
            check_count(len(images), call.count)
            self._opened.sessions.check_once(partial(_check_fits, package, self._inputs, adapter))
            self._run = ControlRun(self._opened, [net], [images])
        except BaseException:
            self.close()
            raise

    @property
    def replacement(self) -> Replacement:
        """Itself: its graph runs in place of the denoiser's."""
        return self

    @property
    def starts_without(self) -> bool:
        """Whether the model's own denoiser runs in the first step."""
        return next(iter(self._call.steps), None) not in self._steps

    def close(self) -> None:
        """Release the package; closing twice is allowed."""
        if self._opened is not None:
            self._opened.release()
            self._opened = None

    def open(self, call: ImageCall | None) -> None:
        """Open what runs in the steps; see CallAdapters.open."""
        if self._steps:
            self._run.opened.sessions.open(CONTROLNET_XS.name, call)

    def wrap(self, session: Session) -> Session:
        """The session itself, which is not used; see `in_place_of`."""
        return session

    def in_place_of(self, denoiser: SessionOf, graph: str) -> Session:
        """The denoiser that runs in the steps.

        Args:
          denoiser: returns the model's own, which is opened when a step needs it.
        """
        record = self.packages[0].manifest.components[CONTROLNET_XS.name]
        embedding = next(spec for spec in record.inputs if spec.name == EMBEDDING)
        sessions = self._run.opened.sessions
        return ReplacedSession(
            graph,
            self._inputs,
            record.outputs,
            steps=self._steps,
            scale=self._net.scale,
            channels=channels_of(embedding),
            replacement=partial(sessions.session, CONTROLNET_XS.name),
            denoiser=partial(denoiser, graph),
            leave_room=self._leave_room,
        )

    def _leave_room(self, to_replacement: bool) -> None:
        """Close, with low_memory, what the graph that comes does not need."""
        (self._components if to_replacement else self._run.opened.sessions).leave_room()

    def conditioning(self, *, guided: bool) -> dict[str, np.ndarray]:
        """Further inputs of that session, a row for each row of the embeddings; see `denoise`."""
        if self._embedding is None:
            (self._embedding,) = self._run.embeddings(self._call)
            self._run.opened.sessions.finish(CONTROL_EMBEDDING.name)
        rows = self._embedding
        return {embedding_name(0): np.concatenate([rows, rows]) if guided else rows}


def _check_fits(package: Package, specs: Sequence[TensorSpec], adapter: Package) -> None:
    """Raises: InvalidArgumentError: it was made for another model. PackageError: one of the
    packages is damaged.
    """
    what = f"{NAME}: {adapter.folder} does not fit {package.folder}"
    record = adapter.manifest.components[CONTROLNET_XS.name]
    with parsing(PackageError, adapter.folder):
        check_embedding(adapter)
        taken = {spec.name: spec for spec in record.inputs}
        if taken.pop(CONDITIONING_SCALE).shape != (1,):
            raise ValueError(f"{CONDITIONING_SCALE} is no number")
        del taken[EMBEDDING]
    ours = {spec.name: spec for spec in specs}
    if taken.keys() != ours.keys() or adapter.manifest.downscale != package.manifest.downscale:
        raise InvalidArgumentError(f"{what}: it was made for a model of another family")
    for name, spec in taken.items():
        if name == "timestep":
            continue
        with parsing(PackageError, adapter.folder):
            channels = channels_of(spec)
        with parsing(PackageError, package.folder):
            wanted = channels_of(ours[name])
        if channels != wanted:
            raise InvalidArgumentError(
                f"{what}: its {name} has {channels} channels, that of the model {wanted}; it was "
                "made for a model of another family"
            )
    check_base(package, adapter, what)
