"""What a call takes as scheduler: names, files, mappings and objects, and what is recorded (N2)."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import Package, Pipeline
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import schedulers
from sdexport.runtime.scheduler_argument import choose_scheduler
from sdexport.runtime.schedulers import Scheduler
from sdexport.runtime.schedulers.create import key_names
from sdexport.runtime.schedulers.program_names import PRESETS
from sdexport.runtime.timestep_plan import ImageShare, TimestepPlan, plan_timesteps

SD = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "clip_sample": False,
}
KARRAS_PACKAGE = {**SD, "_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}
TURBO = {**SD, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
PACKAGES = {"SD": SD, "Karras": KARRAS_PACKAGE, "Turbo": TURBO}
HEUN = {**SD, "_class_name": "HeunDiscreteScheduler", "use_exponential_sigmas": True}
TABLES = {"align_your_steps": "align_your_steps_xl"}


def plan(
    scheduler: Any = None,
    schedule: str | None = None,
    options: dict[str, Any] | None = None,
    *,
    package: dict[str, Any] = SD,
    steps: int | None = 6,
    strength: float | None = None,
    **arguments: Any,
) -> TimestepPlan:
    choice = choose_scheduler(scheduler, package, schedule=schedule, options=options, tables=TABLES)
    share = ImageShare(strength)
    return plan_timesteps(choice, steps, share, has_image=strength is not None, **arguments)


def run(made: TimestepPlan) -> np.ndarray:
    """The latents after all steps, with a function in place of the UNet."""
    rng, sample = np.random.default_rng(3), np.ones((1, 4, 2, 2))
    for i in range(made.first_step, len(made.scheduler.timesteps)):
        noise = rng.standard_normal(sample.shape)
        prediction = np.sin(made.scheduler.scale_model_input(sample, i))
        sample = made.scheduler.step(prediction, i, sample, noise).prev_sample
    return sample


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    ("scheduler", "schedule", "options"),
    [
        *((name, None, {}) for name in (*schedulers.NAMES[:16], *PRESETS)),
        (None, None, {}),
        (None, "timesteps", {}),
        ("DPM++ 2M Karras", None, {}),
        ("dpmpp_2m_sde", "exponential", {"solver_type": "heun"}),
        ("dpm++_2m", "sgm_uniform", {"solver_order": 3}),
        ("dpm++_2m", None, {"use_karras_sigmas": True}),
        ("dpmsolver++", "lu", {}),
        ("dpmsolver++", None, {"algorithm_type": "deis", "final_sigmas_type": "sigma_min"}),
        ("Euler", "trailing", {}),
        ("Euler", "Align Your Steps", {}),
        ("Euler", "ddim_uniform", {}),
        ("euler_a", "beta_timesteps", {}),
        ("euler", None, {"timestep_spacing": "linspace", "s_churn": 3.0, "s_noise": 1.01}),
        ("euler", None, {"sigmas": [9.0, 3.0, 0.5, 0.0]}),
        ("heun", None, {"timesteps": [900, 500, 20]}),
        ("ddim", None, {"eta": 0.5, "prediction_type": "v_prediction"}),
        ("ddim", "leading", {}),
        ("lcm", None, {"original_inference_steps": 40}),
        ("tcd", None, {"eta": 0.1}),
        ("uni_pc_bh2", "karras", {"disable_corrector": [0]}),
        (HEUN, None, {}),
        (HEUN, "karras", {"clip_sample": True}),
        ({**TURBO, "interpolation_type": "log_linear"}, None, {}),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": True}, None, {"eta": 1.0}),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
            None,
            {"use_lu_lambdas": True},
        ),
    ],
)
def test_what_is_recorded_chooses_the_same_scheduler(
    package: str, scheduler: Any, schedule: str | None, options: dict[str, Any]
) -> None:
    """N3: names and options survive JSON, on the same package."""
    config = PACKAGES[package]
    try:
        made = plan(scheduler, schedule, options, package=config)
    except InvalidArgumentError:
        assert package == "Turbo" or schedule or options  # values that exclude each other
        return
    recorded = json.loads(json.dumps([made.name, made.schedule, made.scheduler_options]))
    again = plan(*recorded, package=config, steps=made.num_inference_steps)
    assert type(again.scheduler) is type(made.scheduler)
    np.testing.assert_array_equal(run(again), run(made))
    twice = json.dumps([again.name, again.schedule, again.scheduler_options])
    assert json.loads(twice) == recorded


def test_recorded_names_are_those_of_automatic1111_where_it_has_them() -> None:
    made = plan("DPMSolverMultistepScheduler", None, {"use_karras_sigmas": True})
    assert (made.name, made.schedule) == ("dpm++_2m", "karras")
    made = plan(None, package=KARRAS_PACKAGE)
    assert (made.name, made.schedule, made.scheduler_options) == ("euler", "karras", None)
    made = plan("Euler", "ays")
    assert made.schedule == "align_your_steps_xl"
    assert plan().name == "plms"


@pytest.mark.parametrize("name", schedulers.NAMES[:16])
def test_an_object_gives_what_its_name_gives(name: str) -> None:
    config = {**SD, "steps_offset": 0}
    built = schedulers.create(name, config, 6)
    made = plan(built, steps=None)
    assert made.num_inference_steps == 6
    if "steps_offset" in key_names(name):
        np.testing.assert_array_equal(run(made), run(plan(name, options={"steps_offset": 0})))
    again = plan(made.name, made.schedule, dict(made.scheduler_options or {}))
    np.testing.assert_array_equal(run(made), run(again))


def test_an_object_keeps_its_number_of_steps_and_its_options() -> None:
    built = schedulers.create("euler", SD, 7, s_churn=2.0, schedule="karras")
    made = plan(built, steps=7)
    assert made.scheduler_options == {"s_churn": 2.0}
    assert (made.name, made.schedule, made.num_inference_steps) == ("euler", "karras", 7)
    with pytest.raises(InvalidArgumentError, match="built for 7 steps, got 8; leave it out"):
        plan(built, steps=8)
    for arguments in ({"eta": 0.5}, {"timesteps": [3, 2]}, {"original_inference_steps": 9}):
        with pytest.raises(InvalidArgumentError, match="is built already; give a name"):
            plan(built, steps=None, **arguments)
    for wrong in ({"schedule": "karras"}, {"options": {"s_churn": 1}}):
        with pytest.raises(InvalidArgumentError, match="is built already"):
            plan(built, steps=None, **wrong)  # type: ignore[arg-type]


def test_an_object_may_have_run_before() -> None:
    """A run that was broken off leaves no memory for the next."""
    built = schedulers.create("lms", SD, 6)
    expected = run(plan(built, steps=None, strength=0.5))
    sample = np.full((1, 4, 2, 2), 7.0)
    for i in range(3):
        built.step(sample, i, sample)
    np.testing.assert_array_equal(run(plan(built, steps=None, strength=0.5)), expected)


def test_an_object_of_another_model_is_rejected_or_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = schedulers.create("euler", {**SD, "num_train_timesteps": 500}, 5)
    with pytest.raises(InvalidArgumentError, match="num_train_timesteps 500 and not 1000"):
        plan(other, steps=None)
    plan(schedulers.create("euler", {}, 5), steps=None)
    (record,) = caplog.records
    assert "beta_schedule 'linear' and not 'scaled_linear'" in record.getMessage()


def test_a_class_of_the_callers_own_is_taken() -> None:
    class Own(Scheduler):
        def __init__(self) -> None:
            inner = schedulers.create("ddim", SD, 4)
            self.config = inner.config
            super().__init__(inner.timesteps, inner._scaling)
            self._weights = inner._weights

    made = plan(Own(), steps=None)
    assert (made.name, made.num_inference_steps) == ("Own", 4)
    np.testing.assert_array_equal(run(made), run(plan("ddim", steps=4)))


@pytest.mark.parametrize("kind", ["file", "folder", "package", "text", "mapping", "diffusers"])
def test_n2_a_configuration_of_any_kind(kind: str, tmp_path: Path) -> None:
    expected = run(plan("heun", "exponential"))
    if kind == "diffusers":
        diffusers = pytest.importorskip("diffusers")
        given: Any = diffusers.HeunDiscreteScheduler.from_config(HEUN)
    else:
        folder = tmp_path / "scheduler"
        folder.mkdir()
        (folder / "scheduler_config.json").write_text(json.dumps(HEUN))
        given = {
            "file": folder / "scheduler_config.json",
            "folder": folder,
            "package": tmp_path,
            "text": str(folder / "scheduler_config.json"),
            "mapping": HEUN,
        }[kind]
    made = plan(given)
    assert type(made.scheduler).__name__ == "HeunDiscreteScheduler"
    np.testing.assert_array_equal(run(made), run(plan(HEUN)))
    spacing = made.scheduler.config.timestep_spacing
    assert spacing == "linspace"  # the class's default: the package has no such key
    np.testing.assert_array_equal(run(made), expected)


def test_a_class_is_a_name() -> None:
    assert plan(schedulers.EulerDiscreteScheduler).name == "euler"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"[1]", "it holds no JSON object"),
        (b'{"_class_name": ', "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"{}", "names no scheduler; add _class_name"),
        (b'{"_class_name": 3}', "names no scheduler"),
        (b'{"_class_name": "FooScheduler"}', "FooScheduler is unknown"),
        (b'{"_class_name": "FlowMatchEulerDiscreteScheduler"}', "is not supported: it is for flow"),
        (b'{"_class_name": "DDIMScheduler", "num_train_timesteps": 9}', "does not fit the package"),
        (b'{"_class_name": "DDIMScheduler", "beta_start": NaN}', "beta_start must be a number"),
        (b'{"_class_name": "DDIMScheduler", "beta_start": "x"}', "beta_start must be a number"),
        (b"[" * 10_000, "is damaged"),
    ],
)
def test_a_wrong_file_gets_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        plan(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_windows_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps(SD | {"_class_name": "EulerDiscreteScheduler"}), "utf-8-sig")
    assert plan(file).name == "euler"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        plan(tmp_path / "missing.json")
    with pytest.raises(FileNotFoundError):
        plan("no/such/scheduler_config.json")
    with pytest.raises(InvalidArgumentError, match="expected a scheduler_config"):
        plan(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        with pytest.raises(InvalidArgumentError, match="expected a scheduler_config"):
            plan(tmp_path / "pipe.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheduler": 3}, "scheduler must be a name, a scheduler_config.json, .* got 3"),
        ({"scheduler": []}, "scheduler must be a name"),
        ({"scheduler": "magic"}, "unknown scheduler 'magic'"),
        ({"scheduler": "euler\0"}, "unknown scheduler"),
        ({"schedule": 3}, "schedule must be a name"),
        ({"options": [1]}, "scheduler_options must be a mapping"),
        ({"options": {1: 2}}, "scheduler_options must be a mapping"),
        ({"options": {"schedule": "karras"}}, "schedule is an argument of its own"),
        ({"options": {"strength": 0.5}}, "strength is an argument of its own"),
        ({"scheduler": "ddim", "options": {"eta": 0.5}, "eta": 0.4}, "eta is given twice"),
        ({"options": {"eta": 0.5}}, "pndm has no option 'eta'"),
        (
            {"scheduler": "euler", "options": {"timesteps": [3, 2]}, "timesteps": [3, 2]},
            "timesteps is given twice",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        plan(**arguments)


def test_a_file_of_another_model_is_named(caplog: pytest.LogCaptureFixture) -> None:
    plan({**HEUN, "prediction_type": "v_prediction"})
    (record,) = caplog.records
    assert "prediction_type 'v_prediction' and not 'epsilon'" in record.getMessage()


@pytest.mark.parametrize(
    "class_", ["FlowMatchEulerDiscreteScheduler", "KarrasVeScheduler", "CogVideoXDDIMScheduler"]
)
def test_c8_a_package_of_another_parametrisation_is_rejected(class_: str) -> None:
    package = {"_class_name": class_, "num_train_timesteps": 1000, "shift": 3.0}
    for scheduler in (None, "euler", "DPM++ 2M Karras"):
        with pytest.raises(InvalidArgumentError, match=f"that of {class_}: .*; give the scheduler"):
            plan(scheduler, package=package)
    assert plan(SD, package=package).name == "plms"


@pytest.mark.parametrize("config", [{"_class_name": "FooScheduler"}, {}])
def test_c8_a_package_with_an_unknown_scheduler_is_warned_about_once(
    config: dict[str, Any], package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = Package.load(package, verify=False)
    object.__setattr__(loaded, "scheduler_config", {**SD, "_class_name": None, **config})
    with caplog.at_level(logging.WARNING):
        pipeline = Pipeline(loaded)
        assert pipeline.default_scheduler == "ddim"
        pipeline.scheduler(None, 3)
    (record,) = caplog.records
    assert "DDIMScheduler takes its place" in record.getMessage()
    assert ("FooScheduler" in record.getMessage()) == (config.get("_class_name") == "FooScheduler")


def test_n2_calls_take_schedules_and_options(pipe: Pipeline) -> None:
    """C6 too: trailing spacing at generate."""
    fast: dict[str, Any] = {"seed": 0, "num_inference_steps": 2}
    first = pipe("a red circle", scheduler="dpm++_2m_karras", **fast)
    config = {**pipe.package.scheduler_config, "_class_name": "DPMSolverMultistepScheduler"}
    for arguments in (
        {"scheduler": "DPM++ 2M", "schedule": "Karras"},
        {"scheduler": "dpmpp_2m", "scheduler_options": {"use_karras_sigmas": True}},
        {"scheduler": {**config, "use_karras_sigmas": True}},
        {"scheduler": schedulers.create("dpm++_2m_karras", pipe.package.scheduler_config, 2)},
    ):
        again = pipe("a red circle", **{**fast, **arguments})
        assert np.array_equal(first.latents, again.latents), arguments
        assert (again.parameters[0].scheduler, again.parameters[0].schedule) == (
            "dpm++_2m",
            "karras",
        )
    trailing = pipe.scheduler("euler", 4, schedule="trailing").timesteps
    assert trailing.tolist() == [999.0, 749.0, 499.0, 249.0]
    same = pipe.scheduler("euler", 4, timestep_spacing="trailing").timesteps
    np.testing.assert_array_equal(trailing, same)
