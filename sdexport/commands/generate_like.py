"""Images generated again from the settings of another one: `sdexport generate --like`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from sdexport.commands.generate_jobs import IN_FOLDER, Job
from sdexport.engines.backends import is_installed
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.component_backends import BackendSpec
from sdexport.runtime.images.metadata import image_format
from sdexport.runtime.images.parameters import Parameters
from sdexport.runtime.images.read_parameters import read_parameters
from sdexport.runtime.reproduction import (
    arguments_like,
    differences,
    other_engines,
    warn_of_differences,
)


@dataclass(frozen=True)
class Reference:
    """An image whose settings are used; those of the command replace them.

    seed: that of the command, if it was given.
    """

    path: Path
    parameters: Parameters
    seed: int | None

    @classmethod
    def read(cls, path: Path, *, seed: int | None) -> Self:
        """Raises: FileNotFoundError, InvalidArgumentError: as `read_parameters`."""
        return cls(path, read_parameters(path), seed)

    @property
    def fields(self) -> dict[str, Any]:
        """Settings for the output's name."""
        p = self.parameters
        texts = {"prompt": p.prompt, "negative_prompt": p.negative_prompt or ""}
        return p.arguments() | texts

    def saved_as(self, output: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `save_image` that the file was written with, if the format is the same.

        Args:
          changes: replace recorded ones.
        """
        recorded = dict(self.parameters.file or {})
        kept = {"mark": False} if recorded.get("mark") is False else {}
        name = IN_FOLDER if output.endswith("/") or Path(output).is_dir() else output
        same_format = recorded.get("format") == image_format(name).lower()
        if same_format and not changes.keys() & {"quality", "lossless"}:
            kept |= {k: recorded[k] for k in ("quality", "lossless") if k in recorded}
        return {**kept, **changes}

    def jobs(self, jobs: Sequence[Job], lora_dir: Path | None = None) -> list[Job]:
        """The jobs with the image's settings, which their own replace.

        Args:
          lora_dir: where LoRAs are looked for as well.
        Raises: InvalidArgumentError: see `arguments_like`.
        """
        found = []
        for job in jobs:
            changes = dict(job.arguments)
            if self.seed is not None or job.seed != self.parameters.seed is not None:
                changes["seed"] = job.seed
            arguments = arguments_like(self.parameters, changes, self.path.parent, lora_dir)
            index = self.parameters.batch_index
            found.append(replace(job, arguments=arguments, batch_index=index))
        return found

    def pipeline_arguments(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `load_pipeline` that the image was generated with.

        The recorded backend is left out if it is not installed here, or if another one is given.

        Args:
          changes: replace recorded ones.
        """
        recorded = self.parameters.pipeline_arguments()
        if "backend" in changes or not _usable(recorded.get("backend")):
            for name in ("backend", *self.parameters.options):
                recorded.pop(name, None)
        return {**recorded, **changes}

    def warn_of_differences(self, settings: Mapping[str, Any], jobs: Sequence[Job]) -> None:
        """Say in one line what is not as it was when the image was generated.

        Args:
          settings: of the pipeline; see `Pipeline.settings`.
        """
        self._warn(differences(self.parameters, settings, job.arguments) for job in jobs)

    def warn_of_engines(self, report: Sequence[Mapping[str, Any]]) -> None:
        """The same for engines that were built, of which it is known afterwards whether they ran.

        Args:
          report: the settings of each image.
        """
        self._warn(other_engines(self.parameters, image.get("engines", ())) for image in report)

    def _warn(self, found: Iterable[list[str]]) -> None:
        different = dict.fromkeys(phrase for phrases in found for phrase in phrases)
        warn_of_differences(str(self.path), list(different))


def _usable(backends: str | Mapping[str, str] | None) -> bool:
    """Whether recorded backends can be opened here."""
    values = [backends] if isinstance(backends, str) else list((backends or {}).values())
    try:
        return all(is_installed(BackendSpec.parse(value).name) for value in values)
    except InvalidArgumentError:
        return False
