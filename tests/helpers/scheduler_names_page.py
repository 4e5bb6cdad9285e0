"""Write docs/scheduler-names.md from the tables of names.

Run: python -m tests.helpers.scheduler_names_page
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdexport.runtime.schedulers.catalog import catalog

PAGE = Path(__file__).parents[2] / "docs" / "scheduler-names.md"
COMMAND = "python -m tests.helpers.scheduler_names_page"
HEAD = f"""# Scheduler names

<!-- Written by {COMMAND}; do not edit. -->

Samplers and schedules are accepted under the names of AUTOMATIC1111, Forge, ComfyUI, k-diffusion,
sd-cli of stable-diffusion.cpp, InvokeAI, SD.Next, Easy Diffusion and diffusers: `--scheduler` and
`--schedule`, in Python `scheduler` and `schedule`. Case, spaces, hyphens and underscores do
not matter. A schedule may also be the end of the sampler's name: "DPM++ 2M Karras" is `dpm++_2m`
with `karras`. `sdexport schedulers` prints these tables with the options of each sampler.

## Samplers

"Sets" are keys of the configuration; all others are the package's own. The classes are those of
diffusers, and two of k-diffusion's samplers that diffusers lacks; [Schedulers](schedulers.md) says
how far each is from the original.

| name | class | sets | names in other programs |
|---|---|---|---|
"""


def page() -> str:
    """The text of the page."""
    found = catalog()
    text = HEAD
    for each in found["schedulers"]:
        sets = ", ".join(f"`{key}` {json.dumps(value)}" for key, value in each["sets"].items())
        names = _names(each["aliases"])
        text += f"| `{each['name']}` | {each['class']} | {sets} | {names} |\n"
    text += "\n## Schedules of a sampler\n\n"
    text += _allowed(found["schedulers"])
    text += "\n## Names of schedules\n\n| name | names in other programs |\n|---|---|\n"
    for each in found["schedules"]:
        text += f"| `{each['name']}` | {_names(each['aliases'])} |\n"
    text += """
`automatic` is AUTOMATIC1111's default of each sampler: Karras for DPM++ 2M, DPM++ SDE, DPM++ 2S a,
DPM2 and DPM2 a, exponential for DPM++ 2M SDE and DPM++ 3M SDE, and for others the package's own.
On SDXL `align_your_steps` is the table for SDXL.

## Where programs disagree

| name | meaning here |
|---|---|
"""
    text += "".join(f"| {name} | {what} |\n" for name, what in found["disagreements"].items())
    text += "\n## Missing\n\n| program | names | because |\n|---|---|---|\n"
    for kind in ("schedulers", "schedules"):
        for program, names in found["not_supported"][kind].items():
            where = program if kind == "schedulers" else f"{program}, schedules"
            for why in dict.fromkeys(names.values()):
                listed = ", ".join(f"`{name}`" for name in names if names[name] == why)
                text += f"| {where} | {listed} | {why} |\n"
    return text


def _names(aliases: Mapping[str, list[str]]) -> str:
    return "; ".join(
        f"{program}: {', '.join(f'`{name}`' for name in names)}"
        for program, names in aliases.items()
        if program != "diffusers"
    )


def _allowed(samplers: list[dict[str, Any]]) -> str:
    """Rows of a table: samplers that have the same schedules."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for each in samplers:
        groups.setdefault(tuple(each["schedules"]), []).append(each["name"])
    text = "| samplers | schedules |\n|---|---|\n"
    for schedules, names in groups.items():
        cells = (", ".join(f"`{name}`" for name in group) for group in (names, schedules))
        text += f"| {' | '.join(cells)} |\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
