"""What the LoRAs of a call change; nothing more is imported for a call without any."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdexport.engines import Session
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.images.recorded_values import RecordedLora
from sdexport.runtime.text.prompt_embeds import Text
from sdexport.runtime.text.prompt_texts import as_tuple

if TYPE_CHECKING:
    from sdexport.runtime.adapters.applied_loras import AppliedLoras
    from sdexport.runtime.adapters.lora_store import LoraStore
    from sdexport.runtime.component_sessions import ComponentSessions
    from sdexport.runtime.text_encoders import TextEncoders

LoraArgument = str | PathLike[str] | tuple[str | PathLike[str], float | Sequence[float]]
"""The name or the file of a LoRA, or that and its scale, or scales for each image."""


LorasOfPrompts = Sequence[tuple[Path, float | Sequence[float]]]
"""The files that prompts name, with their scales."""


class NoLoras:
    """The sessions of a package as they are; see AppliedLoras for the methods."""

    recorded: tuple[RecordedLora, ...] | None = None

    def changes(self, component: str) -> bool:
        return False

    def adapted(self, component: str, session: Session) -> Session:
        return session

    def conditioning(self, component: str, *, guided: bool) -> dict[str, np.ndarray]:
        return {}

    def text_encoders(self, encoders: TextEncoders) -> TextEncoders:
        return encoders


def loras_of_call(
    store: LoraStore,
    loras: Sequence[LoraArgument] | None,
    count: int,
    components: ComponentSessions,
    *,
    named: LorasOfPrompts = (),
) -> NoLoras | AppliedLoras:
    """What the argument `loras` of a call of `count` images changes.

    Args:
      named: those that the prompts name.
    Raises: see AppliedLoras.
    """
    if loras is None and not named:
        return NoLoras()
    from sdexport.runtime.adapters.applied_loras import AppliedLoras

    return AppliedLoras(store, loras, count, components, named)


def lora_folder(folder: object) -> Path:
    """The argument `lora_dir` as a path.

    Raises: InvalidArgumentError: no path. NotADirectoryError: no such folder.
    """
    if not isinstance(folder, (str, PathLike)):
        raise InvalidArgumentError(f"lora_dir must be a folder, got {shown(folder)}")
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"lora_dir: {folder} is no folder")
    return Path(folder)


def loras_in_prompts(
    texts: Sequence[Text], folder: Path, arguments: dict[str, Any]
) -> tuple[list[str], list[Text], LorasOfPrompts]:
    """The prompts of the first text encoder and of all, without the names of LoRAs, and these.

    Args:
      texts: of each image. folder: with the LoRAs.
      arguments: of the call; its prompt_2 is replaced.
    Raises: see lora_tags.LoraFolder.
    """
    from sdexport.runtime.adapters.lora_tags import loras_of_prompts, without_lora_tags

    named = loras_of_prompts(texts, folder)
    rest = [without_lora_tags(text) for text in texts]
    second = arguments["prompt_2"]
    if second is not None:
        several = [second] if isinstance(second, str) else second
        stripped = [str(without_lora_tags(text)) for text in several]
        arguments["prompt_2"] = stripped[0] if isinstance(second, str) else stripped
    return [as_tuple(text)[0] for text in rest], rest, named
