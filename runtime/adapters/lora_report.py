"""What is said about a LoRA file: which weights are not used, and what its header says."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sdexport.engines.errors import CheckpointError
from sdexport.engines.messages import plain
from sdexport.runtime.adapters.header_entries import warn_about_unknown
from sdexport.runtime.adapters.lora_base import (
    differ,
    model_of_header,
    model_of_modules,
    model_of_names,
    model_of_widths,
)
from sdexport.runtime.adapters.lora_names import OTHER, UNET, LoraNames
from sdexport.runtime.adapters.lora_roles import split_role

logger = logging.getLogger(__name__)

_LABELS = {
    UNET: "UNet",
    "text_encoder": "text encoder",
    "text_encoder_2": "text encoder 2",
    "text_encoder_3": "text encoder 3",
    OTHER: "other weights",
}
_FEW_STEPS = (
    (re.compile(r"\blcm\b"), "lcm"),
    (re.compile(r"\btcd\b"), "tcd"),
    (re.compile(r"\b(lightning|hyper|turbo|dmd2?)\b.*?\b(?P<steps>\d+) ?steps?\b"), "euler"),
    (re.compile(r"\bhyper ?sd(xl|15)?\b|\bdmd2\b|\bsd(xl)? ?turbo\b"), "euler"),
)
_STEPS = "4"
_BOOLEANS = {"true": "v_prediction", "false": "epsilon"}
_PREDICTIONS = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}


class LoraWeights(Protocol):
    """A file of weights, whatever reads it: its tensors by name, and the texts of its header."""

    @property
    def path(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, Any]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...


def made_for(file: LoraWeights) -> str | None:
    """The model that a LoRA file is made for, by the strongest evidence in it."""
    widths = model_of_widths(
        {
            split[0]: tensor.shape
            for name, tensor in file.tensors.items()
            if (split := split_role(name)) and split[1] == "down"
        }
    )
    names, header = model_of_names(file.tensors), model_of_header(file.metadata)
    return widths or (names if differ(names, header) else header or names)


def fits_nothing(file: LoraWeights, names: LoraNames, model: str | None) -> CheckpointError:
    """The error for a file of which no weight fits the checkpoint.

    Args:
      model: that the file is made for, if that is known.
    """
    unused = [name for of_part in names.unused.values() for name in of_part]
    if not unused:
        return CheckpointError(
            f"{file.path} holds {len(names.embeddings)} bundled embeddings but no LoRA"
        )
    origin = f"is made for {model}" if model else "may be made for another family"
    return CheckpointError(
        f"{file.path}: none of its {len(file.tensors)} weights fits this checkpoint, such as "
        f"{plain(unused[0])}; it {origin}"
    )


def does_not_fit(
    file: LoraWeights, where: str, problem: str, model: str | None, modules: Mapping[str, Any]
) -> CheckpointError:
    """The error for a layer whose tensors do not belong to it, or not together."""
    checkpoint = model_of_modules(modules)
    origin = "is damaged" if model == checkpoint else "is damaged or made for another family"
    if differ(model, checkpoint):
        origin = f"is made for {model}, the checkpoint is {checkpoint}"
    return CheckpointError(f"{file.path}: {where}: {problem}; the LoRA {origin}")


def report(
    file: LoraWeights, names: LoraNames, model: str | None, modules: Mapping[str, Any]
) -> None:
    """Warn about what a file holds and is not used, one line for each component.

    Args:
      model: that the file is made for, if that is known.
      modules: of the checkpoint.
    Raises: CheckpointError: weights of the UNet do not fit, because it is made for another model.
    """
    checkpoint = model_of_modules(modules)
    unused = names.unused.get(UNET) or names.unused.get(OTHER)
    fits = not names.unused.get(UNET) and any(part == UNET for part, _ in names.layers)
    if unused and not fits and differ(model, checkpoint):
        raise CheckpointError(
            f"{file.path} is made for {model}, the checkpoint is {checkpoint}: {len(unused)} of "
            f"its {len(file.tensors)} weights fit no layer, such as {plain(unused[0])}"
        )
    for part, label in _LABELS.items():
        unused = names.unused.get(part, [])
        if unused:
            used, total = names.totals[part] - len(unused), names.totals[part]
            has = part in modules or part == OTHER
            why = (
                "fit no layer" if has else f"are for a {label}, which the checkpoint does not have"
            )
            nothing = f"; the LoRA does not change the {label}" if has and part and not used else ""
            logger.warning(
                "%s: %s: %d of %d used; the others %s, such as %s%s",
                *(file.path, label, used, total, why, plain(unused[0]), nothing),
            )
    header = model_of_header(file.metadata)
    if differ(header, checkpoint):
        logger.warning(
            "%s: its header says %s, the checkpoint is %s", file.path, header, checkpoint
        )
    warn_about_unknown(file.path, file.metadata)
    _hint(file)


def warn_about_prediction(file: LoraWeights, prediction_type: str) -> None:
    """Warn if a LoRA was trained for another prediction type than the checkpoint's."""
    header = {key: str(value).lower() for key, value in file.metadata.items()}
    trained = _PREDICTIONS.get(header.get("modelspec.prediction_type", ""))
    trained = trained or _BOOLEANS.get(header.get("ss_v_parameterization", ""))
    if trained is not None and trained != prediction_type:
        logger.warning(
            "%s was trained with the prediction type %s, the checkpoint has %s",
            *(file.path, trained, prediction_type),
        )


def _hint(file: LoraWeights) -> None:
    """Name the settings of a LoRA for few steps, if its header or its name says that it is one."""
    titles = [file.metadata.get(key, "") for key in ("modelspec.title", "ss_output_name")]
    for title in (*titles, file.path.stem, file.path.parent.name):
        text = re.sub(r"[^a-z0-9]+", " ", title.lower())
        for pattern, scheduler in _FEW_STEPS:
            if match := pattern.search(text):
                trailing = "export with --timestep-spacing trailing, "
                spacing = trailing if scheduler == "euler" else ""
                logger.warning(
                    "%s is a LoRA for few steps: %sgenerate with --scheduler %s --steps %s "
                    "--guidance 1",
                    *(file.path, spacing, scheduler, match.groupdict().get("steps") or _STEPS),
                )
                return
