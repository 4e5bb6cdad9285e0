"""What the adapters of a call change: which graphs run, and what they get in addition.

This is the one place where kinds of adapters meet. LoRAs change the denoiser and the text encoders;
each further kind is a DenoiserAdapter. A denoiser runs the graph that takes exactly the kind that
is used, or the one for all kinds; inputs of kinds that are not used then get values without effect.
A ControlNet-XS is used alone, as its own graph replaces the denoiser's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sdexport.engines import Session
from sdexport.runtime.adapters.call_loras import NoLoras
from sdexport.runtime.models.components import (
    IP_INPUT,
    LORA_INPUT,
    T2I_RESIDUAL,
    AdapterKind,
    adapter_graph,
    is_residual,
)
from sdexport.runtime.text_encoders import TextEncoders

if TYPE_CHECKING:
    from sdexport.runtime.adapters.applied_loras import AppliedLoras
    from sdexport.runtime.adapters.lora_inputs import LayerShape
    from sdexport.runtime.expected_calls import ImageCall
    from sdexport.runtime.packages.package import Package

_OTHERS = {AdapterKind.T2I_ADAPTER: T2I_RESIDUAL, AdapterKind.IP_ADAPTER: IP_INPUT}
"""What the names of inputs begin with that stay inputs of a session with such adapters."""
SessionOf = Callable[[str], Session]
FIELDS = {
    AdapterKind.CONTROLNET: "controlnets",
    AdapterKind.T2I_ADAPTER: "t2i_adapters",
    AdapterKind.IP_ADAPTER: "ip_adapters",
}
"""By kind, the field of the images' settings that records it."""


class Replacement(Protocol):
    """A graph that runs in place of the denoiser's own in some of the steps."""

    @property
    def starts_without(self) -> bool:
        """Whether the denoiser's own graph runs in the first step."""
        ...

    def in_place_of(self, denoiser: SessionOf, graph: str) -> Session:
        """The session that runs in the steps.

        Args:
          denoiser: opens the denoiser's own graph, in the first step that needs it.
        """
        ...


class DenoiserAdapter(Protocol):
    """Adapters of one kind in a call."""

    kind: AdapterKind
    recorded: Any
    packages: tuple[Package, ...]

    @property
    def replacement(self) -> Replacement | None:
        """What replaces the denoiser; None if its own graph takes inputs of this kind."""
        ...

    def open(self, call: ImageCall | None) -> None:
        """Open what runs in the steps; see CallAdapters.open."""
        ...

    def wrap(self, session: Session) -> Session:
        """The denoiser's session without the inputs of this kind, and perhaps with others."""
        ...

    def conditioning(self, *, guided: bool) -> dict[str, np.ndarray]:
        """Those others, a row for each row of the embeddings; see `denoise`."""
        ...

    def close(self) -> None:
        """Release what the call used; closing twice is allowed."""
        ...


class CallAdapters:
    """The adapters of a call.

    Args:
      denoiser: name of that component.
      loras: what the LoRAs change. parts: further kinds, each once.
      rank_of: returns the rank of each layer's factors where the call has no LoRAs; default 1.
    """

    def __init__(
        self,
        denoiser: str,
        loras: NoLoras | AppliedLoras,
        parts: Sequence[DenoiserAdapter] = (),
        rank_of: Callable[[], Callable[[LayerShape], int]] = lambda: lambda shape: 1,
    ) -> None:
        self._rank_of = rank_of
        self._denoiser, self._loras, self._parts = denoiser, loras, tuple(parts)
        self._session: Session | None = None
        replacements = (part.replacement for part in self._parts)
        self._replacement = next((each for each in replacements if each is not None), None)

    @property
    def recorded(self) -> dict[str, Any]:
        """What is recorded in the images, by field of their settings."""
        found = {FIELDS[part.kind]: part.recorded for part in self._parts}
        return {**found, "loras": self._loras.recorded}

    @property
    def graph(self) -> str:
        """The graph of the denoiser that runs."""
        kinds = {part.kind for part in self._parts if part.replacement is None}
        if self._loras.changes(self._denoiser):
            kinds.add(AdapterKind.LORA)
        return adapter_graph(self._denoiser, kinds)

    @property
    def opened_ahead(self) -> list[str]:
        """The graphs of the denoiser that run in the first step."""
        replacement = self._replacement
        return [self.graph] if replacement is None or replacement.starts_without else []

    def open(self, call: ImageCall | None) -> None:
        """Open what runs in the steps in addition to the denoiser.

        Large denoisers are opened in a thread, so there is time for this until they are needed.

        Args:
          call: what it will be called for, if it is known.
        """
        for part in self._parts:
            part.open(call)

    def denoiser(self, session: SessionOf) -> Session:
        """The session of the denoiser; the same one each time.

        Raises: PackageError: the package has no graph for these kinds.
        """
        if self._session is None and self._replacement is not None:
            self._session = self._replacement.in_place_of(session, self.graph)
        if self._session is None:
            opened = session(self.graph)
            if self._loras.changes(self._denoiser):
                opened = self._loras.adapted(self._denoiser, opened)
            else:
                opened = _without_loras(opened, self._rank_of)
            used = {part.kind for part in self._parts}
            if AdapterKind.CONTROLNET not in used:
                opened = _without_residuals(opened)
            for part in self._parts:
                opened = part.wrap(opened)
            self._session = _without_images(opened, used)
        return self._session

    def conditioning(self, *, guided: bool) -> dict[str, np.ndarray]:
        """Further inputs of that session, a row for each row of the embeddings; see `denoise`."""
        found = self._loras.conditioning(self._denoiser, guided=guided)
        for part in self._parts:
            found |= part.conditioning(guided=guided)
        return found

    def text_encoders(self, encoders: TextEncoders) -> TextEncoders:
        """Text encoders that run with the LoRAs.

        Raises: InvalidArgumentError: a LoRA of a text encoder has a scale for each image.
        """
        return self._loras.text_encoders(encoders)

    def check_hashes(self) -> None:
        """Wait until every file of the adapters' packages is compared with its hash.

        Raises: PackageError: a file was altered. OSError: it cannot be read.
        """
        for part in self._parts:
            for package in part.packages:
                package.check_hashes()

    def close(self) -> None:
        """Release what the call used; closing twice is allowed."""
        self._session = None
        for part in self._parts:
            part.close()


def _without_residuals(session: Session) -> Session:
    """The session with zeros as residuals, if it takes some and the call has no ControlNets."""
    if not any(is_residual(spec.name) for spec in session.inputs):
        return session
    from sdexport.runtime.adapters.controlled_session import ControlledSession

    return ControlledSession(session, ())


def _without_loras(session: Session, rank_of: Callable[[], Callable[[LayerShape], int]]) -> Session:
    """The session with factors without effect, if it takes some."""
    if not any(spec.name.startswith(LORA_INPUT) for spec in session.inputs):
        return session
    from sdexport.runtime.adapters.adapted_session import AdaptedSession
    from sdexport.runtime.adapters.lora_inputs import zero_factors

    return AdaptedSession(session, zero_factors(session.inputs, rank_of()))


def _without_images(session: Session, used: Collection[AdapterKind]) -> Session:
    """The session without inputs for T2I-Adapters and IP-Adapters that the call does not use."""
    unused = tuple(start for kind, start in _OTHERS.items() if kind not in used)
    if not any(spec.name.startswith(unused) for spec in session.inputs):
        return session
    from sdexport.runtime.adapters.unused_inputs import UnusedInputs

    return UnusedInputs(session, unused)
