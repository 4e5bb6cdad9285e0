"""The safety checker of a diffusers folder: whether it can be exported, and its configurations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sdexport.checkpoints.config_files import read_config, write_config
from sdexport.checkpoints.source_index import warn_of_unknown_keys
from sdexport.checkpoints.weight_sets import weight_files
from sdexport.engines.errors import CheckpointError
from sdexport.engines.messages import one_line, shown
from sdexport.runtime.images.clip_image import ClipImageProcessor
from sdexport.runtime.models.components import CONCEPTS, SAFETY_CHECKER, SPECIAL_CARE
from sdexport.runtime.models.families import FAMILIES
from sdexport.runtime.packages.listed_files import PREPROCESSOR_CONFIG
from sdexport.runtime.safety_checker import THRESHOLDS

FOLDER = SAFETY_CHECKER.source
EXTRACTOR = "feature_extractor"
_EMBEDS = {CONCEPTS: "concept_embeds", SPECIAL_CARE: "special_care_embeds"}
"""Weights of diffusers' class by output; the thresholds are in those with _weights added."""
_COUNTS = {"concepts": 17, "special_care": 3}
"""Rows of these weights, which the class does not let a configuration change."""


def checker_left_out(
    folder: Path,
    index: Mapping[str, Any],
    named: Collection[str],
    *,
    on_demand: bool,
    **choice: Any,
) -> dict[str, str]:
    """The safety checker, if it is named and not exported, and why; see check_index.

    Args:
      named: the components of model_index.json.
      on_demand: whether it is left out in any case.
      choice: arguments of why_not_exported.
    """
    if FOLDER not in named:
        return {}
    why = "" if on_demand else why_not_exported(folder, index, **choice)
    return {} if why is None else {FOLDER: why}


def why_not_exported(
    folder: Path,
    index: Mapping[str, Any],
    *,
    reads: bool,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> str | None:
    """Why the safety checker that model_index.json names is not exported; None if it is.

    Args:
      reads: whether its weights are read from this folder.
      variant, allow_pickle: which weights; see weight_sets.files_in.
    """
    pipeline, entry = index.get("_class_name"), index[FOLDER]
    with_checker = (family for family in FAMILIES.values() if family.safety_checker)
    if not any(pipeline in family.pipelines for family in with_checker):
        return f"a {one_line(str(pipeline), 60)} has none"
    if not isinstance(entry, list) or entry[-1:] != list(SAFETY_CHECKER.classes[1]):
        return f"only {SAFETY_CHECKER.classes[1][0]} is"
    for name in (f"{FOLDER}/config.json", f"{EXTRACTOR}/{PREPROCESSOR_CONFIG}"):
        if not (folder / name).is_file():
            return f"{name} is missing"
    try:
        processor = _processor(folder)
        vision = safety_checker_config(folder).vision_config
        side, channels = vision["image_size"], vision["num_channels"]
        if processor.output_size != (side, side):
            return f"{EXTRACTOR} makes images of another size than {shown(side)}x{shown(side)}"
        if channels != 3:
            return f"its images have {shown(channels)} channels, not 3"
        if reads:
            weight_files(folder, FOLDER, variant=variant, allow_pickle=allow_pickle)
    except CheckpointError as error:
        return one_line(error, 300)
    return None


def safety_checker_config(folder: Path, *, warns: bool = False) -> SimpleNamespace:
    """The configuration of a safety checker, with the defaults of its class filled in.

    Args:
      warns: of keys that the class does not have.
    Returns: CLIPConfig's keys, and the numbers of concepts.
    Raises: CheckpointError: damaged.
    """
    from transformers import CLIPConfig

    path = folder / FOLDER / "config.json"
    values = read_config(path)
    try:
        complete = CLIPConfig.from_dict(values).to_dict()
    except MemoryError:
        raise
    except Exception as error:  # a damaged configuration makes transformers raise anything
        raise CheckpointError(f"{path} is damaged: {one_line(error, 300)}") from error
    if warns:
        known = {*CLIPConfig().to_dict(), "text_config_dict", "vision_config_dict"}
        warn_of_unknown_keys(folder, FOLDER, values, known)
    return SimpleNamespace(**complete, **_COUNTS)


def write_safety_checker_configs(source: Path, module: Any, destination: Path) -> None:
    """Write config.json, with the thresholds that are weights of the module, and the processor's.

    Args:
      source: the checkpoint's folder. destination: the component's folder in the package.
    """
    thresholds = {
        THRESHOLDS[output]: getattr(module, f"{name}_weights").float().tolist()
        for output, name in _EMBEDS.items()
    }
    config = read_config(source / FOLDER / "config.json") | thresholds
    processor = read_config(source / EXTRACTOR / PREPROCESSOR_CONFIG)
    private = ("_name_or_path", "name_or_path")
    for name, values in (("config.json", config), (PREPROCESSOR_CONFIG, processor)):
        kept = {key: value for key, value in values.items() if key not in private}
        write_config(destination / name, kept)


def _processor(folder: Path) -> ClipImageProcessor:
    path = folder / EXTRACTOR / PREPROCESSOR_CONFIG
    try:
        return ClipImageProcessor.from_config(read_config(path))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {one_line(error, 200)}") from error
