"""Samplers by every name that programs give them, and AUTOMATIC1111's names of ours.

>>> from sdexport.runtime.schedulers.sampler_names import find_sampler, to_automatic1111
>>> find_sampler("DPM++ 2M SDE Karras")
SamplerName(name='dpm++_2m_sde', schedule='karras')
>>> to_automatic1111("dpm++_2m_sde", {"schedule": "karras"})
('DPM++ 2M SDE', 'Karras')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sdexport.runtime.schedulers import schedule_names
from sdexport.runtime.schedulers.program_names import (
    DIFFUSERS,
    FAMILIES_NOT_SUPPORTED,
    LABELS,
    NOT_SUPPORTED,
    OWN_CLASSES,
    PRESETS,
    PROGRAMS,
)
from sdexport.runtime.schedulers.schedule_names import AUTOMATIC, find_schedule, normalized


class SamplerName(NamedTuple):
    """What a name says: our name of the sampler, and the schedule if the name ends in one."""

    name: str
    schedule: str | None = None

    def __str__(self) -> str:
        return self.name if self.schedule is None else f"{self.name}_{self.schedule}"


def find_sampler(name: str) -> SamplerName | None:
    """The sampler that a program calls by this name; None if unknown.

    Args:
      name: of any program, or ours; case, spaces, hyphens and underscores do not matter, and the
        end may be a schedule, such as "Karras".
    """
    for spelling in _spellings(name):
        if spelling in _SAMPLERS:
            return SamplerName(_SAMPLERS[spelling])
    for spelling in _spellings(name):
        for rest, schedule in schedule_names.schedule_endings(spelling).items():
            if rest in _SAMPLERS:
                return SamplerName(_SAMPLERS[rest], schedule)
    return None


def why_not_supported(name: str) -> tuple[str, str] | None:
    """The program that has a sampler of this name, and why there is none here; None if unknown."""
    for spelling in _spellings(name):
        rests = [spelling, *schedule_names.schedule_endings(spelling)]
        for rest in rests:
            if rest in _NOT_SUPPORTED:
                return _NOT_SUPPORTED[rest]
        for part, why in FAMILIES_NOT_SUPPORTED.items():
            if part in spelling:
                return why
    return None


def preset(name: str) -> tuple[str, Mapping[str, Any]]:
    """The scheduler of one of our names, and the keys of its configuration that the name sets."""
    return PRESETS.get(name, (name, {}))


def to_automatic1111(
    name: str, keys: Mapping[str, Any], schedule: str | None = None
) -> tuple[str, str]:
    """AUTOMATIC1111's names for a sampler: "Sampler" and "Schedule type" of its metadata.

    Args:
      name: our name of the sampler, without a schedule.
      keys: of its whole configuration, with defaults.
      schedule: the schedule, if it is not selected by `keys`.
    Returns: what from_automatic1111 reads back to the same sampler and schedule on the same
      package. A sampler that AUTOMATIC1111 lacks has a name in its style, or diffusers' class name.
    """
    scheduler, sets = preset(name)
    keys = {**keys, **sets}
    fitting = [
        (len(wanted), ours)
        for ours, (theirs, wanted) in _labelled()
        if theirs == scheduler and all(keys.get(key) == value for key, value in wanted.items())
    ]
    label = LABELS[max(fitting)[1]] if fitting else _CLASSES[scheduler].removesuffix("Scheduler")
    found = schedule or schedule_names.schedule_of(keys)
    return label, schedule_names.LABELS[found]


def from_automatic1111(sampler: str, schedule_type: str | None = None) -> SamplerName | None:
    """Our sampler and schedule for the "Sampler" and "Schedule type" of AUTOMATIC1111's metadata.

    Args:
      sampler: also in the older form with the schedule, "DPM++ 2M Karras".
      schedule_type: "Automatic" is AUTOMATIC1111's default of the sampler; None, which versions
        before 1.9 wrote, is the schedule in the sampler's name, or the plain one.
    Returns: None if either is unknown.
    """
    found = find_sampler(sampler)
    if found is None or schedule_type is None or found.schedule:
        return found
    schedule = find_schedule(schedule_type)
    if schedule is None:
        return None
    if schedule == AUTOMATIC:
        schedule = schedule_names.AUTOMATIC_SCHEDULES.get(found.name)
    return SamplerName(found.name, schedule)


def display_names() -> list[str]:
    """Names that are worth suggesting: ours, also with Karras's schedule, and AUTOMATIC1111's."""
    plain = list(
        dict.fromkeys(
            [*PROGRAMS[DIFFUSERS].values(), *OWN_CLASSES.values(), *PRESETS, *LABELS.values()]
        )
    )
    return [*plain, *(f"{name}_karras" for name in plain if name not in LABELS.values())]


def _labelled() -> Iterator[tuple[str, tuple[str, Mapping[str, Any]]]]:
    return ((ours, preset(ours)) for ours in LABELS)


def _spellings(name: str) -> list[str]:
    """A normalized name, and without what some programs write before or behind it."""
    text = normalized(name)
    plain = text.removesuffix("scheduler") or text
    return [plain, plain.removeprefix("sample"), plain.removeprefix("k")]


def _find_samplers() -> dict[str, str]:
    found: dict[str, str] = {}
    for names in (*PROGRAMS.values(), OWN_CLASSES):
        found |= {_spellings(theirs)[0]: ours for theirs, ours in names.items()}
    found |= {normalized(label): ours for ours, label in LABELS.items()}
    return found | {normalized(ours): ours for ours in (*PRESETS, *_CLASSES)}


_CLASSES = {
    ours: theirs for theirs, ours in list({**OWN_CLASSES, **PROGRAMS[DIFFUSERS]}.items())[::-1]
}
_SAMPLERS = _find_samplers()
"""Normalized name -> our name."""
_NOT_SUPPORTED = {
    _spellings(theirs)[0]: (program, why)
    for program, names in list(NOT_SUPPORTED.items())[::-1]  # the first program is named
    for theirs, why in names.items()
}
"""Normalized name -> a program that has it, and why there is none here."""
