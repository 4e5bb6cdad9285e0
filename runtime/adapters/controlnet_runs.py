"""One ControlNet of a call: what it makes of its control images, and the steps in which it runs.

A ControlNet-Union may have several control images, each with its mode. It runs once a step with all
of them, on the sum of their embeddings. As in diffusers, scales then belong to the control images,
so the network runs in every step, and in those where a control image does not count the sum is
another. With a single mode the scale belongs to what the network adds, as for every ControlNet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sdexport.engines import Session
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.adapters.adapter_store import OpenAdapter
from sdexport.runtime.adapters.controlled_images import ControlledImages
from sdexport.runtime.adapters.controlled_session import StepControlNet
from sdexport.runtime.adapters.controlnet_argument import NAME, ControlNet
from sdexport.runtime.component_sessions import chunks, finite
from sdexport.runtime.images.control_images import ControlImages
from sdexport.runtime.models.control_types import listed_types, type_number, types_of
from sdexport.runtime.models.controlnet import (
    CONDITIONING_SCALE,
    CONTROL_EMBEDDING,
    CONTROL_IMAGE,
    CONTROL_TYPE,
    CONTROLNET,
    EMBEDDING,
)
from sdexport.runtime.packages.package import Package

Active = tuple[bool, ...]
"""Which of the control images of a run count in a step."""


@dataclass(frozen=True, eq=False)
class ControlRun:
    """A ControlNet that runs once a step.

    nets: several if it is a ControlNet-Union with several modes. images: of each.
    """

    opened: OpenAdapter
    nets: list[ControlNet] = field(default_factory=list)
    images: list[ControlImages] = field(default_factory=list)

    def phases(self, steps: range) -> dict[Active, frozenset[int]]:
        """The steps of the call in which it runs, by the control images that count in them."""
        counting = [steps_of(steps, net) if net.scale else frozenset() for net in self.nets]
        if len(self.nets) == 1:
            return {(True,): counting[0]}
        found: dict[Active, set[int]] = {}
        for step in steps:
            found.setdefault(tuple(step in each for each in counting), set()).add(step)
        phases = {active: frozenset(each) for active, each in found.items()}
        return phases or {(True,) * len(self.nets): frozenset()}

    def embeddings(self, call: ControlledImages) -> list[np.ndarray]:
        """What the network takes in each of the phases, a row for each image of the call.

        Raises: EngineError: see Session.run. InvalidArgumentError: see ControlImages.samples.
        """
        single = len(self.nets) == 1
        each = [
            self._embedded(net, images, 1.0 if single else net.scale, call)
            for net, images in zip(self.nets, self.images, strict=True)
        ]
        sums = []
        for active in self.phases(call.steps):
            total = each[0] if active[0] else np.zeros_like(each[0])
            for embedding, counts in zip(each[1:], active[1:], strict=True):
                total = total + embedding if counts else total
            sums.append(total)
        return sums

    def step_nets(self, steps: range, *, guess_mode: bool) -> Iterator[StepControlNet]:
        """The network in each of the phases."""
        session = self.opened.sessions.session(CONTROLNET.name)
        names = [spec.name for spec in session.outputs]
        weights = np.ones(len(names))
        if guess_mode and not pools(self.opened.package):
            weights = np.logspace(-1, 0, len(names))
        if len(self.nets) == 1:
            weights = weights * self.nets[0].scale
        scales = dict(zip(names, weights.astype(np.float32), strict=True))
        used = self._types()
        further = {} if used is None else {CONTROL_TYPE: used}
        for found in self.phases(steps).values():
            yield StepControlNet(session, scales, found, guess_mode, further)

    def _types(self) -> np.ndarray | None:
        """1 for each type that is used, (types,) float32; None of a ControlNet without types."""
        types = types_of(self.opened.package.manifest.components[CONTROLNET.name].inputs)
        if not types:
            return None
        used = np.zeros(types, np.float32)
        for net in self.nets:
            used[mode_number(net, self.opened.package)] = 1
        return used

    def _embedded(
        self, net: ControlNet, images: ControlImages, scale: float, call: ControlledImages
    ) -> np.ndarray:
        session = self.opened.sessions.session(CONTROL_EMBEDDING.name)
        samples = images.samples(
            call.width,
            call.height,
            _channels(session),
            mode=call.resize_mode,
            crops=call.crops,
            count=call.count,
        )
        number = mode_number(net, self.opened.package)
        inputs, most = {}, call.max_batch
        if number is not None:
            types = types_of(session.inputs)
            inputs[CONTROL_TYPE] = np.eye(types, dtype=np.float32)[number : number + 1]
            inputs[CONDITIONING_SCALE] = np.full(1, scale, np.float32)
            most = None  # what it makes of an image depends on the others
        parts = [
            session.run({CONTROL_IMAGE: samples[rows], **inputs})[EMBEDDING]
            for rows in chunks(len(samples), most)
        ]
        embedded = finite(np.concatenate(parts), session.name, "the control image")
        return np.repeat(embedded, call.count // len(embedded), axis=0)


def control_runs(
    opened: Sequence[OpenAdapter], nets: Sequence[ControlNet], images: Sequence[ControlImages]
) -> list[ControlRun]:
    """The networks that run, in order; those of one ControlNet-Union are one.

    Raises: InvalidArgumentError: one runs in guess mode and not in it.
    """
    runs: list[ControlRun] = []
    unions: dict[tuple[str | None, Path], ControlRun] = {}
    for each, net, controls in zip(opened, nets, images, strict=True):
        key = (each.package.digest, each.package.folder.resolve())
        run = None if net.mode is None else unions.get(key)
        if run is None:
            run = ControlRun(each)
            runs.append(run)
            if net.mode is not None:
                unions[key] = run
        elif run.nets[0].guess_mode != net.guess_mode:
            raise InvalidArgumentError(
                f"{NAME}: {each.package.folder} has modes with and without guess_mode; they run "
                "together, so give all of them the same"
            )
        run.nets.append(net)
        run.images.append(controls)
    return runs


def mode_number(net: ControlNet, package: Package) -> int | None:
    """The number of the type of a ControlNet's control image; None if it has no types.

    Raises: InvalidArgumentError: a ControlNet-Union without a mode, or with one that it does not
      know; a mode of another ControlNet.
    """
    types = types_of(package.manifest.components[CONTROLNET.name].inputs)
    what = f"{NAME}: {package.folder}"
    if not types and net.mode is None:
        return None
    if not types:
        raise InvalidArgumentError(f"{what} has no modes, as it is no ControlNet-Union; omit mode")
    if not isinstance(net.mode, (str, int)):  # a list became one for each mode
        raise InvalidArgumentError(
            f"{what} is a ControlNet-Union; give the mode of its control image, one of "
            f"{listed_types(types)}"
        )
    return type_number(net.mode, types, what)


def pools(package: Package) -> bool:
    """Whether a ControlNet pools its outputs over all pixels."""
    return bool(package.config(CONTROLNET.name).get("global_pool_conditions"))


def steps_of(steps: range, net: ControlNet) -> frozenset[int]:
    """The steps in which a ControlNet runs.

    A step runs if it is wholly between start and end, which are fractions of the steps that are
    run, as in diffusers.
    """
    count = len(steps)
    return frozenset(
        step
        for i, step in enumerate(steps)
        if not (i / count < net.start or (i + 1) / count > net.end)
    )


def _channels(session: Session) -> int:
    (spec,) = (spec for spec in session.inputs if spec.name == CONTROL_IMAGE)
    return int(spec.shape[1])
