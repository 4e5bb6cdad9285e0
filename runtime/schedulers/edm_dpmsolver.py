"""DPM-Solver++ for models with EDM's preconditioning.

Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2; Karras et al. 2022, arXiv 2206.00364.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.schedulers.dpmsolver import DPMSolverConfig, MultistepDPMSolver
from sdexport.runtime.schedulers.edm import EDMConfig, edm_scaling, edm_sigmas, edm_timesteps
from sdexport.runtime.schedulers.log_snr import Level
from sdexport.runtime.schedulers.schedule_arguments import CustomSchedule
from sdexport.runtime.schedulers.scheduler_config import Keys

# Keys of the solver for discrete timesteps that diffusers' solver for EDM does not have.
IGNORED = (
    "lambda_min_clipped",
    "rescale_betas_zero_snr",
    "use_beta_sigmas",
    "use_exponential_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
)


@dataclass(frozen=True, kw_only=True)
class EDMDPMSolverConfig(EDMConfig, DPMSolverConfig):
    """Keys of diffusers' EDMDPMSolverMultistepScheduler."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algorithm == "sde-dpmsolver++" and self.solver_order == 3:
            raise InvalidArgumentError(
                "algorithm_type 'sde-dpmsolver++' has solver_order 1 or 2 with EDM"
            )


class EDMDPMSolverMultistepScheduler(MultistepDPMSolver):
    """DPM-Solver++ with the predictions of up to three steps, from sigma_max to zero.

    Args:
      sigmas: the caller's own falling noise levels, one more than steps, in place of spaced ones.
    """

    config: EDMDPMSolverConfig

    def __init__(
        self, config: Keys, num_inference_steps: int, *, sigmas: CustomSchedule = None
    ) -> None:
        known = {key: value for key, value in config.items() if key not in IGNORED}
        self.config = EDMDPMSolverConfig.from_mapping(known)
        self.sigmas = edm_sigmas(self.config, num_inference_steps, sigmas, repeats_last=False)
        found: list[float] = self.sigmas.tolist()
        super().__init__(
            edm_timesteps(self.sigmas[:-1]),
            [Level(1.0, sigma, -math.log(sigma) if sigma else math.inf) for sigma in found],
            edm_scaling(self.config, self.sigmas, found[:-1]),
        )
