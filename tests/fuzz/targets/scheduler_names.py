"""Names of schedulers and schedules, and options as text: the lines NAME, SCHEDULE, KEY=VALUE..."""

from __future__ import annotations

from pathlib import Path

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.scheduler_argument import choose_scheduler
from sdexport.runtime.schedulers.create import NAMES
from sdexport.runtime.schedulers.sampler_names import display_names, from_automatic1111
from sdexport.runtime.schedulers.schedule_names import KEYS
from sdexport.runtime.schedulers.scheduler_options import option_types, parse_option
from sdexport.runtime.timestep_plan import make_scheduler
from tests.fuzz import mutators
from tests.fuzz.harness import Target
from tests.fuzz.targets.scheduler_config import PACKAGE, STEPS, check

_NO_PATH = str.maketrans("/\\.", "   ")


def run(folder: Path, data: bytes) -> None:
    name, schedule, *rest = [*data.decode("utf-8", "replace").split("\n"), ""][:12]
    name = name.translate(_NO_PATH)  # else it may be that of a file
    from_automatic1111(name, schedule)
    pairs = [text.partition("=") for text in rest if text]
    options = {key.strip(): parse_option(key.strip(), text) for key, _, text in pairs}
    choice = choose_scheduler(name or None, PACKAGE, schedule=schedule or None, options=options)
    check(make_scheduler(choice, STEPS))


WORDS = (
    *display_names(),
    *KEYS,
    *(f"\n{name}=" for name in option_types()),
    *("Karras", "Scheduler", "sample_", "k_", "\n", "=", ",", "[1, 2]", "none", "true", "0.5"),
)
TARGET = Target(
    "scheduler_names",
    run,
    names=("schedule", "option", "steps", "sigma", *NAMES, *option_types()),
    mutate=mutators.text(WORDS),
    errors=(InvalidArgumentError, FileNotFoundError),
)
