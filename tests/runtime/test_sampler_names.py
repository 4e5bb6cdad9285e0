"""Sampler names of other programs: each whole list, as their sources have it (N1)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import schedulers
from sdexport.runtime.schedulers import schedule_names
from sdexport.runtime.schedulers.create import allowed_schedules, config_class
from sdexport.runtime.schedulers.program_names import (
    DIFFUSERS,
    LABELS,
    NOT_SUPPORTED,
    OWN_CLASSES,
    PRESETS,
    PROGRAMS,
)
from sdexport.runtime.schedulers.sampler_names import (
    SamplerName,
    find_sampler,
    from_automatic1111,
    preset,
    to_automatic1111,
    why_not_supported,
)
from sdexport.runtime.schedulers.schedule_names import find_schedule

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KARRAS = {"spaced_by": "karras"}
SPACED_BY = ("schedule", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
MULTISTEP = "DPMSolverMultistepScheduler"
ORDER_2 = {"algorithm_type": "dpmsolver++", "solver_order": 2}
SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}

# Written from the programs' sources, not from our tables.
LISTS = {
    "AUTOMATIC1111": """Euler a|Euler|LMS|Heun|DPM2|DPM2 a|DPM++ 2S a|DPM++ 2M|DPM++ SDE
        |DPM++ 2M SDE|DPM++ 2M SDE Heun|DPM++ 3M SDE|DPM fast|DPM adaptive|Restart|DDIM
        |DDIM CFG++|PLMS|UniPC|LCM|k_euler_a|k_euler_ancestral|k_euler|k_lms
        |k_heun|k_dpm_2|k_dpm_2_a|k_dpmpp_2s_a|k_dpmpp_2m
        |k_dpmpp_sde|k_dpmpp_2m_sde|k_dpmpp_2m_sde_heun|k_dpmpp_3m_sde|k_dpm_fast|k_dpm_ad|k_lcm""",
    "AUTOMATIC1111 before 1.9": """LMS Karras|DPM2 Karras|DPM2 a Karras|DPM++ 2S a Karras
        |DPM++ 2M Karras|DPM++ SDE Karras|DPM++ 2M SDE Karras|DPM++ 2M SDE Exponential
        |DPM++ 2M SDE Heun Karras|DPM++ 2M SDE Heun Exponential|DPM++ 3M SDE Karras
        |DPM++ 3M SDE Exponential|k_lms_ka|k_dpm_2_ka|k_dpm_2_a_ka|k_dpmpp_2s_a_ka|k_dpmpp_2m_ka
        |k_dpmpp_sde_ka|k_dpmpp_2m_sde_ka|k_dpmpp_2m_sde_exp|k_dpmpp_2m_sde_heun_ka
        |k_dpmpp_2m_sde_heun_exp|k_dpmpp_3m_sde_ka|k_dpmpp_3m_sde_exp""",
    "Forge": "HeunPP2|IPNDM|IPNDM_V|DEIS|DDPM",
    "ComfyUI": """euler|euler_cfg_pp|euler_ancestral|euler_ancestral_cfg_pp|heun|heunpp2|dpm_2
        |dpm_2_ancestral|lms|dpm_fast|dpm_adaptive|dpmpp_2s_ancestral|dpmpp_2s_ancestral_cfg_pp
        |dpmpp_sde|dpmpp_sde_gpu|dpmpp_2m|dpmpp_2m_cfg_pp|dpmpp_2m_sde|dpmpp_2m_sde_gpu
        |dpmpp_2m_sde_heun|dpmpp_2m_sde_heun_gpu|dpmpp_3m_sde|dpmpp_3m_sde_gpu|ddpm|lcm|ipndm
        |ipndm_v|deis|res_multistep|res_multistep_cfg_pp|res_multistep_ancestral
        |res_multistep_ancestral_cfg_pp|gradient_estimation|gradient_estimation_cfg_pp|er_sde
        |seeds_2|seeds_3|sa_solver|sa_solver_pece|ddim|uni_pc|uni_pc_bh2""",
    "k-diffusion": """sample_euler|sample_euler_ancestral|sample_heun|sample_dpm_2
        |sample_dpm_2_ancestral|sample_lms|sample_dpm_fast|sample_dpm_adaptive
        |sample_dpmpp_2s_ancestral|sample_dpmpp_sde|sample_dpmpp_2m|sample_dpmpp_2m_sde
        |sample_dpmpp_3m_sde""",
    "sd-cli": """euler|euler_a|heun|dpm2|dpm++2s_a|dpm++2m|dpm++2mv2|ipndm|ipndm_v|lcm|ddim_trailing
        |tcd|res_multistep|res_2s|er_sde|euler_cfg_pp|euler_a_cfg_pp|euler_ge|dpm++2m_sde
        |dpm++2m_sde_bt|lms""",
    "reForge": """Euler Dy|Euler SMEA Dy|Euler A CFG++|DPM++ SDE CFG++|DPM++ 2M DY CFG++
        |SEEDS 2 DP|Kohaku_LoNyu_Yog|ODE (Bosh3)""",
    "InvokeAI": """ddim|ddpm|deis|deis_k|lms|lms_k|pndm|heun|heun_k|euler|euler_k|euler_a|kdpm_2
        |kdpm_2_k|kdpm_2_a|kdpm_2_a_k|dpmpp_2s|dpmpp_2s_k|dpmpp_2m|dpmpp_2m_k|dpmpp_2m_sde
        |dpmpp_2m_sde_k|dpmpp_3m|dpmpp_3m_k|dpmpp_sde|dpmpp_sde_k|er_sde|unipc|unipc_k|lcm|tcd""",
}
NAMES = [
    pytest.param(name.strip(), id=f"{program}: {name.strip()}")
    for program, names in LISTS.items()
    for name in names.split("|")
]

# Program's name -> diffusers' class and keys, from InvokeAI's table and diffusers' documentation.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "LMS Karras": ("LMSDiscreteScheduler", KARRAS),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 Karras": ("KDPM2DiscreteScheduler", KARRAS),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM2 a Karras": ("KDPM2AncestralDiscreteScheduler", KARRAS),
    "DPM++ 2M": (MULTISTEP, ORDER_2),
    "DPM++ 2M Karras": (MULTISTEP, ORDER_2 | KARRAS),
    "DPM++ 2M SDE": (MULTISTEP, SDE),
    "DPM++ 2M SDE Karras": (MULTISTEP, SDE | KARRAS),
    "DPM++ 2M SDE Exponential": (MULTISTEP, SDE | {"spaced_by": "exponential"}),
    "DPM++ 2M SDE Heun": (MULTISTEP, SDE | {"solver_type": "heun"}),
    "DPM++ SDE": ("DPMSolverSDEScheduler", {}),
    "DPM++ SDE Karras": ("DPMSolverSDEScheduler", KARRAS),
    "DDIM": ("DDIMScheduler", {}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "uni_pc_bh2": ("UniPCMultistepScheduler", {"solver_type": "bh2", "solver_order": 3}),
    "LCM": ("LCMScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpm_2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2m_sde_gpu": (MULTISTEP, SDE),
    "k_euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "k_dpmpp_2m": (MULTISTEP, ORDER_2),
    "k_dpmpp_2m_sde_ka": (MULTISTEP, SDE | KARRAS),
    "sample_dpmpp_2m": (MULTISTEP, ORDER_2),
    "dpm++2m": (MULTISTEP, ORDER_2),
    "ddim_trailing": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "kdpm_2_a_k": ("KDPM2AncestralDiscreteScheduler", KARRAS),
    "dpmpp_2s_k": ("DPMSolverSinglestepScheduler", ORDER_2 | KARRAS),
    "dpmpp_3m": (MULTISTEP, {"algorithm_type": "dpmsolver++", "solver_order": 3}),
    "heun_k": ("HeunDiscreteScheduler", KARRAS),
    "dpmpp_sde_k": ("DPMSolverSDEScheduler", KARRAS),
}
OTHER_SPELLINGS = [
    ("K_EULER_ANCESTRAL", "euler_a"),
    ("k_dpmpp_2s", "dpm++_2s"),
    ("DPM++2MSDE", "dpm++_2m_sde"),
    ("dpm++ 2m-sde  karras", "dpm++_2m_sde_karras"),
    ("DPMSolverMultistep", "dpmsolver++"),
    ("EulerAncestralDiscrete", "euler_a"),
    ("Euler Ancestral", "euler_a"),
    ("DPM++ 2M (Karras)", "dpm++_2m_karras"),
    ("ＤＰＭ＋＋ ２Ｍ", "dpm++_2m"),
    ("Euler A Trailing", "euler_a_trailing"),
    ("DPM++ 2M SGM Uniform", "dpm++_2m_sgm_uniform"),
    ("DPM++ 2M Align Your Steps", "dpm++_2m_align_your_steps"),
]


@pytest.mark.parametrize("name", NAMES)
def test_n1_every_name_of_a_program_is_known(name: str) -> None:
    """Each is a sampler here, or it is named as one that is missing."""
    if find_sampler(name) is None:
        with pytest.raises(InvalidArgumentError, match="is not supported: "):
            schedulers.create(name, SD, 5)
        return
    assert why_not_supported(name) is None
    sampler = schedulers.create(name, SD, 5)
    assert type(sampler).__name__ == schedulers.class_name(name)


@pytest.mark.parametrize("name", CLASSES)
def test_n1_names_select_the_class_and_keys_of_diffusers(name: str) -> None:
    class_, keys = CLASSES[name]
    sampler = schedulers.create(name, SD, 5)
    assert type(sampler).__name__ == class_
    for key, value in keys.items():
        assert getattr(sampler.config, key) == value
    if "spaced_by" not in keys:
        assert getattr(sampler.config, "spaced_by", None) is None


@pytest.mark.parametrize(("name", "ours"), OTHER_SPELLINGS)
def test_n1_spelling_does_not_matter(name: str, ours: str) -> None:
    for variant in (name, name.lower(), name.upper(), name.replace(" ", ""), f" {name} "):
        assert schedulers.canonical_name(variant) == ours
    for variant in (name.replace(" ", "_"), name.replace(" ", "-"), name.replace("_", " ")):
        assert schedulers.canonical_name(variant) == ours


def test_tables_agree_with_the_schedulers() -> None:
    ours = {*schedulers.NAMES, *PRESETS}
    assert {name for names in PROGRAMS.values() for name in names.values()} <= ours
    assert set(LABELS) <= ours
    known = {**PROGRAMS[DIFFUSERS], **OWN_CLASSES}
    assert set(known.values()) == set(schedulers.NAMES)
    for class_, name in known.items():
        assert class_ == schedulers.class_name(name) or "Parallel" in class_
    for name, (scheduler, keys) in PRESETS.items():
        assert keys.keys() <= config_class(scheduler).known_keys(), name


def test_no_name_is_both_supported_and_not() -> None:
    for program, names in NOT_SUPPORTED.items():
        for name in names:
            assert find_sampler(name) is None, f"{program}: {name}"
            assert why_not_supported(name) is not None


def test_every_class_of_diffusers_is_known_or_said_to_be_missing() -> None:
    diffusers = pytest.importorskip("diffusers")
    classes = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    unknown = [name for name in classes if not find_sampler(name) and not why_not_supported(name)]
    assert sorted(unknown) == []


def settings() -> list[tuple[str, str | None]]:
    """Every name of ours with every schedule that it can have."""
    names = [*schedulers.NAMES, *PRESETS]
    pairs = itertools.product(names, (None, *schedule_names.KEYS))
    return [(n, s) for n, s in pairs if s is None or s in allowed_schedules(preset(n)[0])]


@pytest.mark.parametrize(("name", "schedule"), settings())
def test_automatic1111_names_read_back_to_the_same_sampler(name: str, schedule: str | None) -> None:
    written = SamplerName(name, schedule)
    before = schedulers.create(str(written), SD, 5)
    sampler, schedule_type = to_automatic1111(name, vars(before.config), schedule)
    found = from_automatic1111(sampler, schedule_type)
    assert found is not None, (sampler, schedule_type)
    after = schedulers.create(str(found), SD, 5)
    assert type(before) is type(after)
    options = {*preset(name)[1], *SPACED_BY}  # where the label does not say those, they are options
    before_keys, after_keys = (vars(sampler.config) for sampler in (before, after))
    for key in before_keys.keys() - options:
        assert before_keys[key] == after_keys[key], key
    if "timestep_spacing" not in preset(name)[1]:
        np.testing.assert_array_equal(before.timesteps, after.timesteps)


def test_automatic1111_names_are_its_own() -> None:
    karras = {"schedule": None, "use_karras_sigmas": True}
    assert to_automatic1111("dpm++_2m", karras) == ("DPM++ 2M", "Karras")
    assert to_automatic1111("dpmsolver++", ORDER_2 | karras) == ("DPM++ 2M", "Karras")
    assert to_automatic1111("euler_a", {"schedule": None}) == ("Euler a", "Uniform")
    assert to_automatic1111("ddim", {}) == ("DDIM", "Automatic")
    assert to_automatic1111("pndm", {"skip_prk_steps": True}) == ("PLMS", "Automatic")
    assert to_automatic1111("dpmsolver++", SDE, "align_your_steps") == (
        "DPM++ 2M SDE",
        "Align Your Steps",
    )
    keys = {"algorithm_type": "deis", "solver_order": 2}
    assert to_automatic1111("dpmsolver++", keys) == ("DPMSolverMultistep", "Automatic")


@pytest.mark.parametrize(
    ("sampler", "schedule_type", "expected"),
    [
        ("DPM++ 2M", "Karras", ("dpm++_2m", "karras")),
        ("DPM++ 2M", "Automatic", ("dpm++_2m", "karras")),  # its default in versions since 1.9
        ("DPM++ 2M SDE", "Automatic", ("dpm++_2m_sde", "exponential")),
        ("DPM++ 2M", None, ("dpm++_2m", None)),
        ("DPM++ 2M Karras", None, ("dpm++_2m", "karras")),
        ("DPM++ 2M Karras", "Automatic", ("dpm++_2m", "karras")),
        ("Euler a", "Automatic", ("euler_a", None)),
        ("Euler", "SGM Uniform", ("euler", "sgm_uniform")),
        ("Euler", "Polyexponential", ("euler", "polyexponential")),
        ("Euler", "Turbo", ("euler", "trailing")),
        ("Restart", "Karras", None),
        ("Euler", "Bumpy", None),
    ],
)
def test_automatic1111_metadata_is_understood(
    sampler: str, schedule_type: str | None, expected: tuple[str, str | None] | None
) -> None:
    assert from_automatic1111(sampler, schedule_type) == expected


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("Karras", "karras"),
        ("SGM Uniform", "sgm_uniform"),
        ("sgm-uniform", "sgm_uniform"),
        ("Align Your Steps", "align_your_steps"),
        ("AYS", "align_your_steps"),
        ("Uniform", "timesteps"),
        ("Turbo", "trailing"),
        ("SDTurboScheduler", "sd_turbo"),
        ("discrete", "normal"),
        ("ddim_uniform", "ddim_uniform"),
        ("bong_tangent", None),
    ],
)
def test_schedules_of_other_programs_are_found(schedule: str, expected: str | None) -> None:
    assert find_schedule(schedule) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DPM adaptive", "'DPM adaptive' of AUTOMATIC1111 is not supported: it chooses its own"),
        ("euler_cfg_pp", "'euler_cfg_pp' of ComfyUI is not supported: CFG"),
        ("dpm++2mv2", "of sd-cli is not supported"),
        ("DPM++ 2N Karras", "did you mean "),
        ("eular", "did you mean euler"),
        ("ddim_karras", "ddim has no schedule 'karras'; choose one of timesteps, "),
        ("🦊\n", "unknown scheduler"),
        ("", "unknown scheduler ''"),
        ("k" * 5000, "unknown scheduler 'kkk"),
    ],
)
def test_a_wrong_name_gets_one_line_that_helps(name: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        schedulers.create(name, SD, 5)
    assert len(str(caught.value)) < 500
