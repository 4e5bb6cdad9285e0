"""The options that each scheduler lists, and their values in texts."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import schedulers
from sdexport.runtime.schedulers.scheduler_options import option_types, options_of, parse_option

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TYPES = {"int", "float", "bool", "str", "list of int", "list of float"}


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_listed_options_are_accepted_with_their_defaults(name: str) -> None:
    for option in options_of(name):
        assert option.type in TYPES, option
        if option.default is not None and option.name != "algorithm_type":
            schedulers.create(name, SD, 5, **{option.name: option.default})
        for choice in option.choices:
            assert isinstance(choice, str)
        json.dumps(option.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", schedulers.NAMES)
def test_an_option_has_one_type_in_all_schedulers(name: str) -> None:
    for option in options_of(name):
        assert option_types()[option.name] == option.type


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("solver_order", "3", 3),
        ("use_karras_sigmas", "true", True),
        ("use_karras_sigmas", "OFF", False),
        ("s_churn", "4", 4.0),
        ("s_tmax", "inf", math.inf),
        ("lambda_min_clipped", "-inf", -math.inf),
        ("timestep_spacing", "trailing", "trailing"),
        ("trained_betas", "[0.1, 0.2]", [0.1, 0.2]),
        ("disable_corrector", "0,2", [0, 2]),
        ("variance_type", "none", None),
    ],
)
def test_values_are_read_by_type(name: str, text: str, expected: Any) -> None:
    found = parse_option(name, text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("solver_oder", "3", "unknown scheduler option 'solver_oder'; did you mean solver_order"),
        ("🦊", "3", "unknown scheduler option '🦊'"),
        ("solver_order", "two", "solver_order: expected int, got 'two'"),
        ("solver_order", "1e400", "solver_order: expected int"),
        ("use_karras_sigmas", "maybe", "use_karras_sigmas: expected true or false, got 'maybe'"),
        ("trained_betas", "a,b", "trained_betas: expected list of float, got 'a,b'"),
        ("s_noise", "", "s_noise: expected float, got ''"),
    ],
)
def test_wrong_values_are_named(name: str, text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        parse_option(name, text)


def test_options_replace_the_keys_of_the_configuration() -> None:
    plain = schedulers.create("dpm++_2m", SD | {"solver_type": "heun"}, 5)
    changed = schedulers.create("dpm++_2m", SD, 5, solver_type="heun", solver_order=3)
    assert plain.config.solver_type == changed.config.solver_type == "heun"  # type: ignore[attr-defined]
    assert changed.config.solver_order == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("euler", {"solver_order": 2}, "euler has no option 'solver_order'; choose one of "),
        ("dpm++_2m", {"solver_oder": 2}, "has no option 'solver_oder'; did you mean solver_order"),
        ("lcm", {"timestep_spacing": "trailing"}, "lcm has no option 'timestep_spacing'"),
        ("edm_euler", {"beta_start": 0.1}, "edm_euler has no option 'beta_start'"),
        ("euler", {"use_karras_sigmas": "yes"}, "use_karras_sigmas must be true or false"),
    ],
)
def test_options_that_a_scheduler_lacks_are_named(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        schedulers.create(name, SD if name != "edm_euler" else {}, 5, **options)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("gits", "schedule 'gits' of sd-cli is not supported"),
        ("kerras", "unknown schedule 'kerras'; did you mean karras"),
        (7, "schedule must be a name, got 7"),
        ("", "unknown schedule ''"),
    ],
)
def test_wrong_schedules_are_named(schedule: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        schedulers.create("euler", SD, 5, schedule=schedule)


def test_two_schedules_are_rejected() -> None:
    with pytest.raises(InvalidArgumentError, match="name two schedules"):
        schedulers.create("dpm++_2m_karras", SD, 5, schedule="exponential")
    assert schedulers.create("dpm++_2m_karras", SD, 5, schedule="Karras").timesteps.size == 5
    automatic = schedulers.create("DPM++ 2M", SD, 5, schedule="Automatic")
    assert automatic.config.schedule == "karras"  # type: ignore[attr-defined]


def test_a_schedule_and_an_option_that_contradict_it() -> None:
    with pytest.raises(InvalidArgumentError, match="'leading' sets timestep_spacing to leading"):
        schedulers.create("euler", SD, 4, schedule="leading", timestep_spacing="trailing")
    for name, schedule in (("euler", "karras"), ("Euler Karras", None), ("euler", "trailing")):
        with pytest.raises(InvalidArgumentError, match="sets use_exponential_sigmas to False"):
            schedulers.create(name, SD, 4, schedule=schedule, use_exponential_sigmas=True)
    with pytest.raises(InvalidArgumentError, match="'karras' sets use_karras_sigmas to True"):
        schedulers.create("Euler Karras", SD, 4, use_karras_sigmas=False)
    assert schedulers.create("Euler Karras", SD, 4, use_karras_sigmas=True, use_beta_sigmas=False)
    assert schedulers.create("euler", SD, 4, schedule="leading", timestep_spacing="leading")
    assert schedulers.create("euler", SD, 4, schedule="karras", timestep_spacing="trailing")
