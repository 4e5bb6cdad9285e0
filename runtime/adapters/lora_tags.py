"""LoRAs that prompts name, as `<lora:style:0.8>`: files of a folder, by their names.

Source: the prompt syntax of AUTOMATIC1111's web UI 1.10.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.text.prompt_embeds import Text
from sdexport.runtime.text.prompt_texts import as_tuple

TAG = re.compile(r"<(?:lora|lyco):(?P<name>[^<>:]+)(?::(?P<scale>[^<>]*))?>", re.IGNORECASE)
_MOST_FILES = 100_000
_NAMED = 5
NamedLora = tuple[Path, float]


class LoraFolder:
    """The LoRAs of a folder and its subfolders, by the names that prompts give them.

    Args:
      folder: its .safetensors files are known by their names without this ending.
      option: what the folder is called, for messages.
    Raises: NotADirectoryError: no such folder. InvalidArgumentError: it has too many files.
    """

    def __init__(self, folder: str | PathLike[str], option: str = "lora_dir") -> None:
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise NotADirectoryError(f"{option}: {folder} is no folder")
        self._files: dict[str, list[Path]] = {}
        for count, path in enumerate(self._folder.rglob("*.safetensors")):
            if count >= _MOST_FILES:
                raise InvalidArgumentError(
                    f"{option}: {folder} holds more than {_MOST_FILES} files"
                )
            self._files.setdefault(path.stem, []).append(path)

    def named_in(self, text: str) -> list[NamedLora]:
        """The LoRAs that a text names, in its order.

        Raises: InvalidArgumentError: a LoRA that the folder does not have, or a scale that is no
          number.
        """
        return [self._lora(match) for match in TAG.finditer(text)]

    def named_in_all(self, texts: Iterable[str]) -> list[NamedLora]:
        """The LoRAs that the texts of one prompt name, each text for one text encoder.

        A LoRA that a text names several times has the sum of the scales; one that several texts
        name with the same scale is there once.

        Raises: see named_in.
        """
        found: dict[NamedLora, None] = {}
        for text in texts:
            sums: dict[Path, float] = {}
            for path, scale in self.named_in(text):
                sums[path] = sums.get(path, 0.0) + scale
            found |= dict.fromkeys(sums.items())
        return list(found)

    @property
    def names(self) -> list[str]:
        """The names of the LoRAs."""
        return list(self._files)

    def files(self, name: str) -> list[Path]:
        """The files of a name."""
        return list(self._files.get(name, ()))

    def _lora(self, match: re.Match[str]) -> NamedLora:
        name, scale = match["name"].strip(), (match["scale"] or "1").strip()
        paths, known = self._files.get(name, ()), self._files
        if not paths:
            listed = ", ".join(shown(each)[1:-1] for each in sorted(known)[:_NAMED])
            more = ", ..." if len(known) > _NAMED else ""
            there = f"it has {listed}{more}" if known else "it has no .safetensors file"
            raise InvalidArgumentError(
                f"{shown(match[0])}: no such LoRA in {self._folder}; {there}"
            )
        if len(paths) > 1:
            raise InvalidArgumentError(
                f"{shown(match[0])}: {len(paths)} files in {self._folder} have that name, such as "
                f"{paths[0]} and {paths[1]}"
            )
        try:
            return paths[0], float(scale)
        except ValueError:
            raise InvalidArgumentError(
                f"{shown(match[0])}: expected a number as its scale, got {shown(scale)}"
            ) from None


def without_lora_tags(text: Text) -> Text:
    """A text, or one for each text encoder, without the names of LoRAs."""
    found = tuple(TAG.sub("", each) for each in as_tuple(text))
    return found[0] if isinstance(text, str) else found


def loras_of_prompts(
    prompts: Sequence[Text], folder: str | PathLike[str]
) -> list[tuple[Path, float | list[float]]]:
    """The LoRAs that the prompts of a batch name, each with its scale for every image.

    Each has the sum of the scales in a prompt; see LoraFolder.named_in_all.

    Raises: see LoraFolder.
    """
    if not any(TAG.search(text) for prompt in prompts for text in as_tuple(prompt)):
        return []
    known, scales = LoraFolder(folder), dict[Path, list[float]]()
    for image, prompt in enumerate(prompts):
        for path, scale in known.named_in_all(as_tuple(prompt)):
            scales.setdefault(path, [0.0] * len(prompts))[image] += scale
    return [(path, _same_or_each(each)) for path, each in scales.items()]


def _same_or_each(scales: list[float]) -> float | list[float]:
    return scales[0] if len(set(scales)) == 1 else scales
