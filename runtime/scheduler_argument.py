"""What a caller may give as scheduler: a name, a configuration, a file of one, or a scheduler.

>>> from sdexport.runtime.scheduler_argument import choose_scheduler
>>> package = {"_class_name": "PNDMScheduler", "beta_start": 0.00085}
>>> chosen = choose_scheduler("DPM++ 2M Karras", package)
>>> chosen.name, chosen.schedule
('dpm++_2m', 'karras')
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.files import read_json
from sdexport.engines.messages import shown
from sdexport.runtime.schedulers import Scheduler
from sdexport.runtime.schedulers.create import chosen_schedule, sampler_of
from sdexport.runtime.schedulers.program_names import CLASSES_OF_OTHER_MODELS
from sdexport.runtime.schedulers.sampler_names import find_sampler, why_not_supported

logger = logging.getLogger(__name__)

SchedulerArgument = str | os.PathLike[str] | Mapping[str, Any] | Scheduler
DEFAULT_SCHEDULER = "ddim"
"""Used where a configuration names a scheduler that is not known here."""
CONFIG_FILE = "scheduler_config.json"
MAX_FILE_SIZE = 16_000_000
TRAINING_KEYS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "sigma_data"),
)
"""Keys that say how a model was trained; a configuration without them takes the package's."""


@dataclass(frozen=True)
class SchedulerChoice:
    """A scheduler that is not built yet, or `built`, which a caller built.

    name: ours, without a schedule; the class name of a `built` one that is not known here. config:
    what it is built on, of `package_config` or another. schedule: None for that of the
    configuration. options: as in `schedulers.create`.
    """

    name: str
    config: Mapping[str, Any]
    package_config: Mapping[str, Any]
    schedule: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    built: Scheduler | None = None


def default_scheduler(config: Mapping[str, Any]) -> str:
    """The scheduler that a scheduler_config.json names if it is known here, else DDIM."""
    found = find_sampler(str(config.get("_class_name", "")))
    return DEFAULT_SCHEDULER if found is None else found.name


def replacement_warning(config: Mapping[str, Any]) -> str | None:
    """What a scheduler_config.json names that is replaced here, in a sentence; None for nothing."""
    class_ = str(config.get("_class_name") or "")
    if find_sampler(class_) is not None or class_ in CLASSES_OF_OTHER_MODELS:
        return None
    what = f"{class_[:60]} is not available" if class_ else "no scheduler is named"
    return (
        f"scheduler/{CONFIG_FILE}: {what}; DDIMScheduler takes its place, so images differ from "
        "those of diffusers; choose another with --scheduler, or scheduler=... in Python"
    )


def warn_of_replacement(config: Mapping[str, Any]) -> None:
    """Log a warning if the scheduler of a package is replaced."""
    warning = replacement_warning(config)
    if warning is not None:
        logger.warning("%s", warning)


def choose_scheduler(
    scheduler: SchedulerArgument | None,
    package_config: Mapping[str, Any],
    *,
    schedule: str | None = None,
    options: Mapping[str, Any] | None = None,
    tables: Mapping[str, str] | None = None,
) -> SchedulerChoice:
    """Find out what a caller means.

    Args:
      scheduler: a name of any program; a scheduler_config.json, or a folder with one; the content
        of one; a Scheduler, or one of diffusers, whose class and configuration are taken; None is
        the package's own.
      package_config: the content of the package's scheduler_config.json.
      schedule, options: as in `schedulers.create`.
      tables: schedule -> schedule of the model family that replaces it.
    Raises: InvalidArgumentError: unknown, or it does not fit the package. FileNotFoundError.
    """
    options = _checked_options(options)
    if isinstance(scheduler, Scheduler):
        if schedule is not None or options:
            what = "schedule" if schedule is not None else "scheduler_options"
            raise InvalidArgumentError(f"{what}: the scheduler is built already; give a name")
        return _built(scheduler, package_config)
    name, config = _name_and_config(scheduler, package_config)
    found = sampler_of(name)
    schedule = chosen_schedule(found, schedule)
    schedule = (tables or {}).get(str(schedule), schedule)
    return SchedulerChoice(found.name, config, package_config, schedule, options)


def _checked_options(options: object) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise InvalidArgumentError(
            f"scheduler_options must be a mapping from names to values, got {shown(options)}"
        )
    for name, instead in (("schedule", "schedule"), ("strength", "strength")):
        if name in options:
            raise InvalidArgumentError(
                f"scheduler_options: {name} is an argument of its own; give {instead}=..."
            )
    return {
        name: value.item() if isinstance(value, np.generic) else value  # a Python number
        for name, value in options.items()
    }


def _name_and_config(
    scheduler: Any, package_config: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]]:
    """The name of a scheduler that is not built yet, and the configuration to build it on."""
    if scheduler is None:
        return default_scheduler(package_config), package_config
    if isinstance(scheduler, type):
        return scheduler.__name__, package_config
    if isinstance(scheduler, os.PathLike) or _is_file(scheduler):
        path = Path(scheduler)
        return _from_mapping(_read(path), package_config, str(path))
    if isinstance(scheduler, str):
        return scheduler, package_config
    config = getattr(scheduler, "config", None)
    if isinstance(config, Mapping):  # diffusers' own
        scheduler = {**config, "_class_name": type(scheduler).__name__}
    if not isinstance(scheduler, Mapping):
        raise InvalidArgumentError(
            f"scheduler must be a name, a {CONFIG_FILE}, its content or a Scheduler, "
            f"got {shown(scheduler)}"
        )
    return _from_mapping(scheduler, package_config, "scheduler")


def _is_file(name: object) -> bool:
    """Whether a text is the path of a configuration, and not the name of a sampler."""
    if not isinstance(name, str) or "\0" in name or find_sampler(name) or why_not_supported(name):
        return False
    return name.endswith(".json") or os.sep in name


def _read(path: Path) -> dict[str, Any]:
    """The content of a scheduler_config.json, also of one in a folder."""
    for inside in (path / CONFIG_FILE, path / "scheduler" / CONFIG_FILE):
        if path.is_dir() and inside.is_file():
            path = inside
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise InvalidArgumentError(f"{path}: expected a {CONFIG_FILE}, or a folder that has one")
    if path.exists() and path.stat().st_size > MAX_FILE_SIZE:
        raise InvalidArgumentError(f"{path}: {path.stat().st_size:,} bytes are no {CONFIG_FILE}")
    return read_json(path, InvalidArgumentError)


def _from_mapping(
    given: Mapping[str, Any], package_config: Mapping[str, Any], where: str
) -> tuple[str, Mapping[str, Any]]:
    """The name in the content of a scheduler_config.json, and the configuration to build it on."""
    class_ = given.get("_class_name")
    if not isinstance(class_, str):
        raise InvalidArgumentError(
            f"{where}: the configuration names no scheduler; add _class_name, such as "
            '"EulerDiscreteScheduler", or give its keys as scheduler_options'
        )
    why = why_not_supported(class_)
    if find_sampler(class_) is None:
        reason = f" is not supported: {why[1]}" if why else " is unknown"
        raise InvalidArgumentError(f"{where}: {class_[:60]}{reason}")
    _check_training(given, package_config, where)
    training = {key: package_config[key] for key in TRAINING_KEYS if key in package_config}
    return class_, {**training, **given}


def _built(scheduler: Scheduler, package_config: Mapping[str, Any]) -> SchedulerChoice:
    config = vars(scheduler.config) if hasattr(scheduler, "config") else {}
    class_ = type(scheduler).__name__
    _check_training(config, package_config, f"the scheduler ({class_})")
    found = find_sampler(class_)
    name = class_ if found is None else found.name
    return SchedulerChoice(name, package_config, package_config, built=scheduler)


def _check_training(given: Mapping[str, Any], package: Mapping[str, Any], where: str) -> None:
    """Reject another number of training steps, and warn about other differences in training."""
    differs = {
        key: f"{key} {shown(given[key])} and not {shown(package[key])}"
        for key in TRAINING_KEYS
        if given.get(key) is not None and package.get(key) is not None
        if _comparable(given[key]) != _comparable(package[key])
    }
    if "num_train_timesteps" in differs:
        raise InvalidArgumentError(
            f"{where} does not fit the package: it has {differs['num_train_timesteps']}"
        )
    if differs:
        what = ", ".join(differs.values())
        logger.warning("%s is of another model than the package's: it has %s", where, what)


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
