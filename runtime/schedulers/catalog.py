"""Everything that `sdexport schedulers` lists: samplers, schedules, and names that are missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdexport.runtime.schedulers.create import NAMES, allowed_schedules, class_name, sampler_of
from sdexport.runtime.schedulers.program_names import (
    DISAGREEMENTS,
    LABELS,
    NOT_SUPPORTED,
    PRESETS,
    PROGRAMS,
)
from sdexport.runtime.schedulers.sampler_names import preset
from sdexport.runtime.schedulers.schedule_names import (
    KEYS,
    PROGRAM_SCHEDULES,
    SCHEDULES_NOT_SUPPORTED,
)
from sdexport.runtime.schedulers.scheduler_options import options_of


def catalog(name: str | None = None) -> dict[str, Any]:
    """All samplers, schedules and missing names, as JSON can hold them.

    Args:
      name: list only this sampler, by the name of any program.
    Raises: InvalidArgumentError: unknown or missing.
    """
    if name is not None:
        return {"schedulers": [_sampler(sampler_of(name).name)]}
    return {
        "schedulers": [_sampler(ours) for ours in (*NAMES, *PRESETS)],
        "schedules": [
            {"name": schedule, "aliases": _aliases(schedule, PROGRAM_SCHEDULES)}
            for schedule in KEYS
        ],
        "not_supported": {
            "schedulers": {program: dict(names) for program, names in NOT_SUPPORTED.items()},
            "schedules": {
                program: dict(names) for program, names in SCHEDULES_NOT_SUPPORTED.items()
            },
        },
        "disagreements": dict(DISAGREEMENTS),
    }


def _sampler(name: str) -> dict[str, Any]:
    scheduler, sets = preset(name)
    options = options_of(scheduler)
    own = [replace(option, default=sets.get(option.name, option.default)) for option in options]
    return {
        "name": name,
        "class": class_name(scheduler),
        "scheduler": scheduler,
        "sets": dict(sets),
        "label": LABELS.get(name),
        "aliases": _aliases(name, PROGRAMS),
        "schedules": list(allowed_schedules(scheduler)),
        "options": [option.to_dict() for option in own],
    }


def _aliases(name: str, programs: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """What each program calls it."""
    found = {
        program: [theirs for theirs, ours in names.items() if ours == name]
        for program, names in programs.items()
    }
    return {program: names for program, names in found.items() if names}
