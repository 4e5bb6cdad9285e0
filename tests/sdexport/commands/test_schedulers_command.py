"""sdexport schedulers, the scheduler options of generate, and completion in the shell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from PIL import Image

from sdexport import Pipeline
from sdexport.cli import main
from sdexport.runtime import schedulers
from sdexport.runtime.images.read_parameters import read_parameters
from sdexport.runtime.schedulers.program_names import NOT_SUPPORTED, PRESETS, PROGRAMS


def call(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_n1_json_lists_every_name_with_class_aliases_options_and_schedules() -> None:
    found = json.loads(call("schedulers", "--json").stdout)
    listed = {each["name"]: each for each in found["schedulers"]}
    assert listed.keys() == {*schedulers.NAMES, *PRESETS}
    for program, names in PROGRAMS.items():
        for theirs, ours in names.items():
            assert theirs in listed[ours]["aliases"][program]
    for name, each in listed.items():
        assert each["class"] == schedulers.class_name(name)
        assert each["schedules"] == list(schedulers.allowed_schedules(each["scheduler"]))
        assert "num_train_timesteps" in {option["name"] for option in each["options"]}
        assert all(option.keys() >= {"name", "type", "default"} for option in each["options"])
    defaults = {option["name"]: option["default"] for option in listed["dpm++_3m"]["options"]}
    assert defaults["solver_order"] == 3
    assert found["not_supported"]["schedulers"] == NOT_SUPPORTED


def test_text_lists_every_name() -> None:
    text = call("schedulers").stdout
    for name in (*schedulers.NAMES, *PRESETS):
        assert f"\n{name}: {schedulers.class_name(name)}\n" in f"\n{text}"
    words = " ".join(text.split())
    for program, names in NOT_SUPPORTED.items():
        assert program in words
        assert [name for name in names if name not in words] == []


def test_one_scheduler_by_the_name_of_any_program() -> None:
    (line, *_) = call("schedulers", "DPM++ 2M Karras").stdout.splitlines()
    assert line == "dpm++_2m: DPMSolverMultistepScheduler"
    (found,) = json.loads(call("schedulers", "k_euler_a", "--json").stdout)["schedulers"]
    assert found["name"] == "euler_a"
    failed = call("schedulers", "DPM adaptive")
    assert failed.exit_code == 1 and failed.stdout == ""
    assert "is not supported: it chooses its own number of steps" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_command_imports_no_inference_library() -> None:
    code = (
        "import sys; from sdexport.cli import main; main(['schedulers'], standalone_mode=False); "
        "print(sorted({'torch', 'diffusers', 'onnxruntime', 'PIL', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "incomplete", "expected"),
    [
        (["generate", "p", "x", "--scheduler"], "dpm++_2m_s", "dpm++_2m_sde"),
        (["generate", "p", "x", "--scheduler"], "k_euler", "k_euler_a"),
        (["generate", "p", "x", "--schedule"], "sgm", "sgm_uniform"),
        (["generate", "p", "x", "--scheduler-option"], "solver_o", "solver_order="),
        (["bench", "p", "--scheduler"], "EULER", "euler"),
        (["schedulers"], "uni", "unipc"),
    ],
)
def test_names_are_completed(arguments: list[str], incomplete: str, expected: str) -> None:
    completion = ShellComplete(main, {}, "sdexport", "_SDEXPORT_COMPLETE")
    found = [item.value for item in completion.get_completions(arguments, incomplete)]
    assert expected in found
    assert all(name.casefold().startswith(incomplete.casefold()) for name in found)


def test_options_of_generate_reach_the_image(package: Path, pipe: Pipeline, tmp_path: Path) -> None:
    """N2 and C6, and the settings are recorded (N3)."""
    out = tmp_path / "a.png"
    done = call(
        *("generate", package, "a star", "-o", out, "--steps", 2, "--seed", 3),
        *("--scheduler", "DPM++ 2M", "--schedule", "SGM Uniform", "--timestep-spacing", "trailing"),
        *("--scheduler-option", "solver_type=heun", "--scheduler-option", "solver_order=1"),
    )
    assert done.exit_code == 0, done.output
    expected = pipe(
        "a star",
        seed=3,
        num_inference_steps=2,
        scheduler="dpm++_2m",
        schedule="sgm_uniform",
        scheduler_options={
            "timestep_spacing": "trailing",
            "solver_type": "heun",
            "solver_order": 1,
        },
    )
    with Image.open(out) as image:
        assert image.tobytes() == expected.images[0].tobytes()
        text = image.info["parameters"]
    assert "Schedule type: SGM Uniform" in text
    found = read_parameters(out)
    assert found.schedule == "sgm_uniform"
    assert found.scheduler_options == expected.parameters[0].scheduler_options
    again = call("generate", package, "--like", out, "-o", tmp_path / "b.png")
    assert again.exit_code == 0, again.output
    with Image.open(tmp_path / "b.png") as image:
        assert image.tobytes() == expected.images[0].tobytes()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--scheduler-option", "solver_order"], 2, "expected KEY=VALUE, such as solver_order=3"),
        (["--scheduler-option", "solver_oder=3"], 2, "did you mean solver_order?"),
        (["--scheduler-option", "solver_order=x"], 2, "solver_order: expected int, got 'x'"),
        (["--timestep-spacing", "even"], 2, "'even' is not one of 'linspace'"),
        (["--scheduler", "lms", "--scheduler-option", "solver_order=2"], 1, "lms has no option"),
        (["--scheduler", "nothing.json"], 1, "nothing.json: No such file"),
        (["--schedule", "kerras"], 1, "unknown schedule 'kerras'; did you mean karras?"),
        (["--scheduler", "ddim", "--schedule", "karras"], 1, "ddim has no schedule 'karras'"),
        (["--scheduler", "lcm", "--timestep-spacing", "trailing"], 1, "lcm has no option"),
    ],
)
def test_wrong_options_of_generate_are_named(
    arguments: list[str], status: int, message: str, package: Path, tmp_path: Path
) -> None:
    done = call("generate", package, "a star", "-o", tmp_path / "a.png", *arguments)
    assert done.exit_code == status, done.output
    assert message in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_help_names_the_command() -> None:
    assert isinstance(main.commands["schedulers"], click.Command)
