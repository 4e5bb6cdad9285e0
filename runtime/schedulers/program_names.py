"""The samplers that other programs have, under the names that they have there.

A name that programs use for different things has the meaning of most of them; see DISAGREEMENTS.

Sources: modules/sd_samplers_*.py of AUTOMATIC1111 1.10 and Forge, comfy/samplers.py of ComfyUI,
k_diffusion/sampling.py, src/stable-diffusion.cpp, InvokeAI's schedulers.py, and the page
api/schedulers/overview of diffusers' documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "plms": ("pndm", {"skip_prk_steps": True}),
    "dpm++_2m": ("dpmsolver++", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpm++_3m": ("dpmsolver++", {"algorithm_type": "dpmsolver++", "solver_order": 3}),
    "dpm++_2m_sde": ("dpmsolver++", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "dpm++_2m_sde_heun": (
        "dpmsolver++",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "solver_type": "heun"},
    ),
    "dpm_2m": (
        "dpmsolver++",
        {"algorithm_type": "dpmsolver", "solver_order": 2, "final_sigmas_type": "sigma_min"},
    ),
    "dpm++_2s": ("dpmsolver++_single", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpm++_sde": ("dpmsolver_sde", {}),
    "unipc_bh1": ("unipc", {"solver_type": "bh1", "solver_order": 3}),
    "unipc_bh2": ("unipc", {"solver_type": "bh2", "solver_order": 3}),
    "ddim_trailing": ("ddim", {"timestep_spacing": "trailing"}),
}
"""Our name of a sampler -> scheduler, and the keys of its configuration that the name sets."""

LABELS: Mapping[str, str] = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "lms": "LMS",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "dpm++_2m": "DPM++ 2M",
    "dpm++_3m": "DPM++ 3M",
    "dpm++_2m_sde": "DPM++ 2M SDE",
    "dpm++_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpm_2m": "DPM 2M",
    "dpm++_2s": "DPM++ 2S",
    "dpm++_sde": "DPM++ SDE",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "plms": "PLMS",
    "pndm": "PNDM",
    "unipc": "UniPC",
    "deis": "DEIS",
    "lcm": "LCM",
    "tcd": "TCD",
    "dpm++_2s_a": "DPM++ 2S a",
    "dpm++_3m_sde": "DPM++ 3M SDE",
    "sasolver": "SA Solver",
    "ipndm": "IPNDM",
    "ddim_inverse": "DDIM Inverse",
    "dpmsolver++_inverse": "DPM++ 2M Inverse",
    "euler_inverse": "Euler Inverse",
    "edm_euler": "Euler EDM",
    "edm_dpmsolver++": "DPM++ 2M EDM",
}
"""What AUTOMATIC1111 and Forge call our samplers; made up in their style where they lack one."""

AUTOMATIC1111, FORGE, COMFYUI = "AUTOMATIC1111", "Forge", "ComfyUI"
K_DIFFUSION, SD_CLI, INVOKEAI = "k-diffusion", "sd-cli", "InvokeAI"
REFORGE, RES4LYF = "reForge", "RES4LYF"
SD_NEXT, EASY_DIFFUSION, DIFFUSERS = "SD.Next", "Easy Diffusion", "diffusers"

PROGRAMS: Mapping[str, Mapping[str, str]] = {
    DIFFUSERS: {
        "DDIMScheduler": "ddim",
        "DDPMScheduler": "ddpm",
        "PNDMScheduler": "pndm",
        "LMSDiscreteScheduler": "lms",
        "EulerDiscreteScheduler": "euler",
        "EulerAncestralDiscreteScheduler": "euler_a",
        "HeunDiscreteScheduler": "heun",
        "KDPM2DiscreteScheduler": "dpm2",
        "KDPM2AncestralDiscreteScheduler": "dpm2_a",
        "DPMSolverMultistepScheduler": "dpmsolver++",
        "DPMSolverSinglestepScheduler": "dpmsolver++_single",
        "DPMSolverSDEScheduler": "dpmsolver_sde",
        "UniPCMultistepScheduler": "unipc",
        "DEISMultistepScheduler": "deis",
        "LCMScheduler": "lcm",
        "TCDScheduler": "tcd",
        "SASolverScheduler": "sasolver",
        "DDIMInverseScheduler": "ddim_inverse",
        "DPMSolverMultistepInverseScheduler": "dpmsolver++_inverse",
        "IPNDMScheduler": "ipndm",
        "EDMEulerScheduler": "edm_euler",
        "EDMDPMSolverMultistepScheduler": "edm_dpmsolver++",
        "DDIMParallelScheduler": "ddim",
        "DDPMParallelScheduler": "ddpm",
    },
    AUTOMATIC1111: {
        "Euler a": "euler_a",
        "k_euler_a": "euler_a",
        "k_euler_ancestral": "euler_a",
        "Euler": "euler",
        "k_euler": "euler",
        "LMS": "lms",
        "k_lms": "lms",
        "Heun": "heun",
        "k_heun": "heun",
        "DPM2": "dpm2",
        "k_dpm_2": "dpm2",
        "DPM2 a": "dpm2_a",
        "k_dpm_2_a": "dpm2_a",
        "DPM++ 2M": "dpm++_2m",
        "k_dpmpp_2m": "dpm++_2m",
        "DPM++ SDE": "dpm++_sde",
        "k_dpmpp_sde": "dpm++_sde",
        "DPM++ 2M SDE": "dpm++_2m_sde",
        "k_dpmpp_2m_sde": "dpm++_2m_sde",
        "DPM++ 2M SDE Heun": "dpm++_2m_sde_heun",
        "k_dpmpp_2m_sde_heun": "dpm++_2m_sde_heun",
        "DDIM": "ddim",
        "PLMS": "plms",
        "UniPC": "unipc",
        "LCM": "lcm",
        "k_lcm": "lcm",
        "DPM++ 2S a": "dpm++_2s_a",
        "k_dpmpp_2s_a": "dpm++_2s_a",
        "DPM++ 3M SDE": "dpm++_3m_sde",
        "k_dpmpp_3m_sde": "dpm++_3m_sde",
    },
    FORGE: {"DDPM": "ddpm", "DEIS": "deis"},
    COMFYUI: {
        "euler": "euler",
        "euler_ancestral": "euler_a",
        "heun": "heun",
        "dpm_2": "dpm2",
        "dpm_2_ancestral": "dpm2_a",
        "lms": "lms",
        "dpmpp_sde": "dpm++_sde",
        "dpmpp_sde_gpu": "dpm++_sde",
        "dpmpp_2m": "dpm++_2m",
        "dpmpp_2m_sde": "dpm++_2m_sde",
        "dpmpp_2m_sde_gpu": "dpm++_2m_sde",
        "dpmpp_2m_sde_heun": "dpm++_2m_sde_heun",
        "dpmpp_2m_sde_heun_gpu": "dpm++_2m_sde_heun",
        "ddpm": "ddpm",
        "lcm": "lcm",
        "deis": "deis",
        "ddim": "ddim",
        "dpmpp_2s_ancestral": "dpm++_2s_a",
        "dpmpp_3m_sde": "dpm++_3m_sde",
        "dpmpp_3m_sde_gpu": "dpm++_3m_sde",
        "sa_solver": "sasolver",
        "uni_pc": "unipc",
        "uni_pc_bh2": "unipc_bh2",
    },
    K_DIFFUSION: {
        "sample_euler": "euler",
        "sample_euler_ancestral": "euler_a",
        "sample_heun": "heun",
        "sample_dpm_2": "dpm2",
        "sample_dpm_2_ancestral": "dpm2_a",
        "sample_lms": "lms",
        "sample_dpmpp_sde": "dpm++_sde",
        "sample_dpmpp_2m": "dpm++_2m",
        "sample_dpmpp_2m_sde": "dpm++_2m_sde",
        "sample_dpmpp_2s_ancestral": "dpm++_2s_a",
        "sample_dpmpp_3m_sde": "dpm++_3m_sde",
    },
    SD_CLI: {
        "euler": "euler",
        "euler_a": "euler_a",
        "heun": "heun",
        "dpm2": "dpm2",
        "dpm++2m": "dpm++_2m",
        "dpm++2m_sde": "dpm++_2m_sde",
        "dpm++2m_sde_bt": "dpm++_2m_sde",
        "dpm++2s_a": "dpm++_2s_a",
        "lcm": "lcm",
        "ddim_trailing": "ddim_trailing",
        "tcd": "tcd",
        "lms": "lms",
    },
    INVOKEAI: {
        "ddim": "ddim",
        "ddpm": "ddpm",
        "deis": "deis",
        "lms": "lms",
        "pndm": "pndm",
        "heun": "heun",
        "euler": "euler",
        "euler_a": "euler_a",
        "kdpm_2": "dpm2",
        "kdpm_2_a": "dpm2_a",
        "dpmpp_2s": "dpm++_2s",
        "dpmpp_2m": "dpm++_2m",
        "dpmpp_2m_sde": "dpm++_2m_sde",
        "dpmpp_3m": "dpm++_3m",
        "dpmpp_sde": "dpm++_sde",
        "unipc": "unipc",
        "lcm": "lcm",
        "tcd": "tcd",
    },
    SD_NEXT: {
        "DPM++": "dpm++_2m",
        "DPM++ 3M": "dpm++_3m",
        "DPM++ 1S": "dpm++_2s",
        "DPM SDE": "dpm++_sde",
        "LMSD": "lms",
        "KDPM2": "dpm2",
        "KDPM2 a": "dpm2_a",
        "PNDM": "pndm",
        "DDIM Parallel": "ddim",
        "DDPM Parallel": "ddpm",
    },
    EASY_DIFFUSION: {
        "dpm_solver_stability": "dpm_2m",
        "dpm": "dpm_2m",
        "dpmpp_2m": "dpm++_2m",
        "dpm2": "dpm2",
        "dpm2_a": "dpm2_a",
        "unipc_tu": "unipc",
        "dpmpp_2s_a": "dpm++_2s_a",
    },
}
"""Program -> its name of a sampler -> ours. A name that AUTOMATIC1111 has is not repeated for Forge
and SD.Next. Names that end in a schedule, such as "DPM++ 2M Karras", are not listed."""

OWN_CLASSES: Mapping[str, str] = {
    "DPMSolver2SAncestralScheduler": "dpm++_2s_a",
    "DPMSolver3MSDEScheduler": "dpm++_3m_sde",
    "EulerInverseScheduler": "euler_inverse",
}
"""Classes of samplers that diffusers does not have -> our name."""

DISAGREEMENTS: Mapping[str, str] = {
    "DPM++ SDE": "k-diffusion's sampler, which is DPMSolverSDEScheduler in diffusers and InvokeAI; "
    "diffusers' table names DPMSolverSinglestepScheduler (dpm++_2s here), SD.Next another",
    "DPM++ 2M": "no schedule of its own, as in all programs but AUTOMATIC1111 since 1.9, whose "
    "'Automatic' schedule is Karras for it; --schedule automatic follows that",
    "UniPC": "diffusers' default (bh2, order 2), as in InvokeAI and SD.Next; AUTOMATIC1111 and "
    "ComfyUI's uni_pc use bh1 of order 3, which is unipc_bh1 here",
    "SA Solver": "diffusers' default, orders 2 and 2; ComfyUI's sa_solver has a predictor of order "
    "3 and a corrector of order 4",
    "IPNDM": "diffusers' IPNDMScheduler, for models of continuous time; ComfyUI's and Forge's, for "
    "Stable Diffusion, is another",
    "DDIM": "DDIMScheduler; ComfyUI's is Euler's method, which has the same steps without eta",
    "Beta": "noise levels at quantiles, as in diffusers, AUTOMATIC1111 and SD.Next; ComfyUI's and "
    "sd-cli's schedule has timesteps there, which is beta_timesteps here",
    "Turbo": "Forge's schedule, trailing timesteps; ComfyUI's SDTurboScheduler is sd_turbo here",
    "LCM": "LCMScheduler with its own timesteps; ComfyUI's takes those of any schedule",
}
"""What a name means here where programs differ."""

_CFG_PP = "CFG++ is a change of the guidance, and no guidance here has it"
_ADAPTIVE = "it chooses its own number of steps"
_MISSING = "its method is not implemented"
_FLOW = "it is for flow matching models"
_OTHER_MODEL = "it is for another kind of model than Stable Diffusion"
OTHER_MODELS = (_FLOW, _OTHER_MODEL)
"""Reasons that concern the model: no sampler that is here can take the place of the missing one."""

CLASSES_OF_OTHER_MODELS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "FlowMapEulerDiscreteScheduler",
            "FlowMatchEulerDiscreteScheduler",
            "FlowMatchHeunDiscreteScheduler",
            "FlowMatchLCMScheduler",
        ),
        _FLOW,
    ),
    **dict.fromkeys(
        (
            "AmusedScheduler",
            "BlockRefinementScheduler",
            "CMStochasticIterativeScheduler",
            "CogVideoXDDIMScheduler",
            "CogVideoXDPMScheduler",
            "ConsistencyDecoderScheduler",
            "CosineDPMSolverMultistepScheduler",
            "DDPMWuerstchenScheduler",
            "DiscreteDDIMScheduler",
            "EntropyBoundScheduler",
            "HeliosDMDScheduler",
            "HeliosScheduler",
            "KarrasVeScheduler",
            "LTXEulerAncestralRFScheduler",
            "MiniMaxH3Scheduler",
            "PiflowScheduler",
            "RFD4ProteinaScheduler",
            "SCMScheduler",
            "ScoreSdeVeScheduler",
            "ScoreSdeVpScheduler",
            "UnCLIPScheduler",
            "VQDiffusionScheduler",
        ),
        _OTHER_MODEL,
    ),
}
"""Classes of diffusers whose configurations belong to other models -> which."""

NOT_SUPPORTED: Mapping[str, Mapping[str, str]] = {
    AUTOMATIC1111: {
        "DPM fast": _MISSING,
        "k_dpm_fast": _MISSING,
        "DPM adaptive": _ADAPTIVE,
        "k_dpm_ad": _ADAPTIVE,
        "Restart": _MISSING,
        "DDIM CFG++": _CFG_PP,
    },
    FORGE: {"HeunPP2": _MISSING, "IPNDM_V": _MISSING},
    COMFYUI: {
        "euler_cfg_pp": _CFG_PP,
        "euler_ancestral_cfg_pp": _CFG_PP,
        "heunpp2": _MISSING,
        "dpm_fast": _MISSING,
        "dpm_adaptive": _ADAPTIVE,
        "dpmpp_2s_ancestral_cfg_pp": _CFG_PP,
        "dpmpp_2m_cfg_pp": _CFG_PP,
        "ipndm_v": _MISSING,
        "res_multistep": _MISSING,
        "res_multistep_cfg_pp": _CFG_PP,
        "res_multistep_ancestral": _MISSING,
        "res_multistep_ancestral_cfg_pp": _CFG_PP,
        "gradient_estimation": _MISSING,
        "gradient_estimation_cfg_pp": _CFG_PP,
        "er_sde": _MISSING,
        "seeds_2": _MISSING,
        "seeds_3": _MISSING,
        "sa_solver_pece": _MISSING,
    },
    K_DIFFUSION: {
        "sample_dpm_fast": _MISSING,
        "sample_dpm_adaptive": _ADAPTIVE,
    },
    SD_CLI: {
        "dpm++2mv2": _MISSING,
        "ipndm_v": _MISSING,
        "res_multistep": _MISSING,
        "res_2s": _MISSING,
        "er_sde": _MISSING,
        "euler_cfg_pp": _CFG_PP,
        "euler_a_cfg_pp": _CFG_PP,
        "euler_ge": _MISSING,
    },
    INVOKEAI: {"er_sde": _MISSING},
    REFORGE: dict.fromkeys(
        (
            *("Euler A2", "Euler Dy", "Euler SMEA Dy", "Euler Negative", "Euler Negative Dy"),
            *("DPM++ SDE Classic", "Kohaku_LoNyu_Yog", "DPM++ 2M DY", "DPM++ 3M DY"),
            *("DPM++ 3M SDE DY", "SEEDS 2 DP", "SEEDS 3 DP", "RES Solver", "ODE (Bosh3)"),
            *("ODE (Fehlberg2)", "ODE (Adaptive Heun)", "ODE (Dopri5)", "ODE Custom"),
        ),
        _MISSING,
    ),
    RES4LYF: dict.fromkeys(
        ("res_2m", "res_3m", "res_2s", "res_3s", "res_5s", "res_6s", "deis_2m", "deis_3m"),
        _MISSING,
    ),
    SD_NEXT: dict.fromkeys(
        (
            *("DC Solver", "VDM Solver", "ER-SDE", "ER-SDE 2M", "ER-SDE 3M", "TDD", "PeRFlow"),
            *("UFOGen", "BDIA DDIM", "DPM++ Cosine", "CMSI", "CogX DDIM", "Langevin Dynamics"),
            *("ABNorsett 2M", "ABNorsett 3M", "ABNorsett 4M", "Lawson 2S A", "Lawson 2S B"),
            *("Lawson 4S", "ETD-RK 2S", "ETD-RK 3S A", "ETD-RK 3S B", "ETD-RK 4S A"),
            *("ETD-RK 4S B", "PEC 423", "PEC 433", "DEIS-Unified 1S", "DEIS-Unified 2M"),
        ),
        _MISSING,
    ),
    EASY_DIFFUSION: {"unipc_snr": _MISSING, "unipc_tq": _MISSING},
    DIFFUSERS: {
        **CLASSES_OF_OTHER_MODELS,
        "RePaintScheduler": "it is for inpainting with DDPM; use --mask with any other sampler",
    },
}
"""Program -> its name of a sampler that is missing here -> why."""

FAMILIES_NOT_SUPPORTED: Mapping[str, tuple[str, str]] = {
    "cfg++": ("Forge and ComfyUI", _CFG_PP),
    "flowmatch": (SD_NEXT, _FLOW),
}
"""A part of a normalized name -> programs that have such names, and why there are none here."""
