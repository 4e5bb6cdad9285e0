"""sdexport schedulers."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import click

from sdexport.commands.output import echo
from sdexport.commands.scheduler_types import SchedulerType
from sdexport.commands.shared_options import json_option, print_json
from sdexport.commands.verbosity import verbosity_options


@click.command()
@click.argument("name", required=False, type=SchedulerType())
@json_option
@verbosity_options
def schedulers(name: str | None, as_json: bool) -> None:
    """List the schedulers, their names in other programs, schedules and options.

    NAME is the name of one in any program, such as "DPM++ 2M" or dpmpp_2m. Without it all are
    listed, and the names that are known elsewhere and missing here.
    """
    from sdexport.runtime.schedulers.catalog import catalog

    found = catalog(name)
    if as_json:
        print_json(found)
        return
    echo(*_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    for number, sampler in enumerate(found["schedulers"]):
        if number:
            yield ""
        yield from _sampler_lines(sampler)
    if "schedules" in found:
        yield from ("", "Schedules, for --schedule and at the end of a scheduler's name:")
        for schedule in found["schedules"]:
            yield from _row(schedule["name"], _aliases(schedule["aliases"]), 22)
        yield from ("", "Names that mean different things elsewhere:")
        for name, meaning in found["disagreements"].items():
            yield from _row(name, meaning, 22)
        yield from ("", "Missing here:")
        missing = found["not_supported"]
        for kind in ("schedulers", "schedules"):
            for program, names in missing[kind].items():
                for why in dict.fromkeys(names.values()):
                    listed = ", ".join(name for name in names if names[name] == why)
                    what = f"{kind} of {program}, because {why}: "
                    yield from _row("", f"{what}{listed}", 2)


def _sampler_lines(sampler: Mapping[str, Any]) -> Iterator[str]:
    yield f"{sampler['name']}: {sampler['class']}"
    if sampler["sets"]:
        sets = ", ".join(f"{key} {_text(value)}" for key, value in sampler["sets"].items())
        yield from _row("sets", sets)
    yield from _row("names", _aliases(sampler["aliases"]) or "none in other programs")
    yield from _row("schedules", ", ".join(sampler["schedules"]) or "none")
    yield from _row("options", "; ".join(map(_option, sampler["options"])))


def _option(option: Mapping[str, Any]) -> str:
    kind = "|".join(option.get("choices", [option["type"]]))
    default = "" if option["default"] is None else f" = {_text(option['default'])}"
    return f"{option['name']} {kind}{default}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _aliases(aliases: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{program}: {', '.join(names)}" for program, names in aliases.items())


def _row(title: str, text: str, indent: int = 13) -> Iterator[str]:
    """A title and a text, which is wrapped to the width of the terminal."""
    width = max(shutil.get_terminal_size((100, 24)).columns, 60)
    first = f"  {title:<{indent - 2}}"
    yield from textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]
