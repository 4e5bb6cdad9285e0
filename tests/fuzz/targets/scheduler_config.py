"""scheduler_config.json: the scheduler that it describes, and its timesteps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.runtime import schedulers
from sdexport.runtime.packages.manifest import read_json
from sdexport.runtime.scheduler_argument import choose_scheduler, default_scheduler
from sdexport.runtime.schedulers.create import CONTINUOUS, NAMES, class_name, known_keys
from sdexport.runtime.schedulers.scheduler_base import Scheduler
from sdexport.runtime.timestep_plan import make_scheduler
from tests.fuzz import mutators
from tests.fuzz.harness import Target

PACKAGE = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
STEPS = 7
FILE = "scheduler_config.json"


def prepare(folder: Path) -> None:
    (folder / "scheduler").mkdir()
    known_keys()  # imports every scheduler


def write(folder: Path, data: bytes) -> None:
    (folder / "scheduler" / FILE).write_bytes(data)


def run(folder: Path, data: bytes) -> None:
    """As a package's configuration, and as a file that a user names."""
    error: Exception | None = None
    try:
        config = read_json(folder, f"scheduler/{FILE}")
        check(schedulers.create(default_scheduler(config), config, STEPS))
    except (InvalidArgumentError, PackageError) as raised:
        error = raised
    choice = choose_scheduler(folder / "scheduler" / FILE, PACKAGE)
    check(make_scheduler(choice, STEPS))
    if error is not None:
        raise error


def check(scheduler: Scheduler) -> None:
    """Numbers that a pipeline can use."""
    assert len(scheduler.timesteps) >= 1
    assert np.isfinite(scheduler.timesteps).all() and math.isfinite(scheduler.init_noise_sigma)


WORDS = (
    *(class_name(name) for name in NAMES if name != CONTINUOUS),
    *sorted(known_keys()),
    *("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "exp", "sigmoid", "exponential"),
    *("leading", "trailing", "linspace", "epsilon", "v_prediction", "sample", "zero", "sigma_min"),
    *("bh1", "bh2", "midpoint", "heun", "dpmsolver", "sde-dpmsolver++", "logrho", "fixed_small"),
)
TARGET = Target(
    "scheduler_config",
    run,
    names=(FILE, "scheduler", *WORDS, *NAMES, "steps", "sigma"),
    prepare=prepare,
    write=write,
    mutate=mutators.json_text(WORDS),
    errors=(InvalidArgumentError, PackageError),
)
