"""Which layers a LoRA file changes, and the errors for a file that does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sdexport.engines.errors import CheckpointError
from sdexport.runtime.adapters.lora_names import LoraNames, read_names
from sdexport.runtime.adapters.lora_report import LoraWeights, fits_nothing, made_for
from sdexport.runtime.adapters.lora_roles import split_role, unsupported_method


def read_layout(
    file: LoraWeights,
    layers_of: Mapping[str, Iterable[str]],
    component: str | None = None,
    *,
    kind: str = "no LoRA",
) -> tuple[LoraNames, str | None]:
    """The layers of a file's weights, and the model that it is made for, if that is known.

    Args:
      layers_of: the layers of a checkpoint, by component.
      component: the one that names without a prefix belong to, if that is known.
      kind: what the file is if it is no LoRA.
    Raises: CheckpointError: no LoRA, an unsupported method, or no layer that fits.
    """
    if not any(split_role(name) or unsupported_method(name) for name in file.tensors):
        raise CheckpointError(f"{file.path} is {kind}; expected a LoRA")
    try:
        names = read_names(file.tensors, layers_of, component)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from error
    model = made_for(file)
    if not names.layers:
        raise fits_nothing(file, names, model)
    return names, model
