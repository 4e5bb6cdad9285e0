"""What the LoRAs of a call change; nothing more is imported for a call without any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from sdexport.engines import Session
from sdexport.runtime.images.recorded_values import RecordedLora

if TYPE_CHECKING:
    from sdexport.runtime.adapters.applied_loras import AppliedLoras
    from sdexport.runtime.adapters.lora_store import LoraStore
    from sdexport.runtime.component_sessions import ComponentSessions
    from sdexport.runtime.text_encoders import TextEncoders

LoraArgument = str | PathLike[str] | tuple[str | PathLike[str], float | Sequence[float]]
"""The name or the file of a LoRA, or that and its scale, or scales for each image."""


class NoLoras:
    """The sessions of a package as they are; see AppliedLoras for the methods."""

    recorded: tuple[RecordedLora, ...] | None = None

    def graph(self, component: str) -> str:
        return component

    def denoiser(self, component: str, session: Callable[[str], Session]) -> Session:
        return session(component)

    def conditioning(self, component: str, *, guided: bool) -> dict[str, np.ndarray]:
        return {}

    def text_encoders(self, encoders: TextEncoders) -> TextEncoders:
        return encoders


def loras_of_call(
    store: LoraStore,
    loras: Sequence[LoraArgument] | None,
    count: int,
    components: ComponentSessions,
) -> NoLoras | AppliedLoras:
    """What the argument `loras` of a call of `count` images changes.

    Raises: see AppliedLoras.
    """
    if loras is None:
        return NoLoras()
    from sdexport.runtime.adapters.applied_loras import AppliedLoras

    return AppliedLoras(store, loras, count, components)
