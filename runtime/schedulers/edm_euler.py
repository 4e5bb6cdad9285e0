"""Euler's method for models with EDM's preconditioning.

Source: Karras et al. 2022, arXiv 2206.00364, algorithm 2 without its second order.
"""

from __future__ import annotations

import math

from sdexport.runtime.schedulers.edm import EDMConfig, edm_scaling, edm_sigmas, edm_timesteps
from sdexport.runtime.schedulers.euler import Churn, EulerScheduler
from sdexport.runtime.schedulers.schedule_arguments import CustomSchedule
from sdexport.runtime.schedulers.scheduler_config import Keys


class EDMEulerScheduler(EulerScheduler):
    """Euler's method from sigma_max to zero.

    Args:
      sigmas: the caller's own falling noise levels, one more than steps, in place of spaced ones.
      s_churn, s_tmin, s_tmax, s_noise: the noise added before a step, 0 or more; see algorithm 2.
    """

    config: EDMConfig

    def __init__(
        self,
        config: Keys,
        num_inference_steps: int,
        *,
        sigmas: CustomSchedule = None,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
    ) -> None:
        self.config = EDMConfig.from_mapping(config)
        levels = edm_sigmas(self.config, num_inference_steps, sigmas)
        timesteps = edm_timesteps(levels[:-1])
        churn = Churn.of_options(s_churn, s_tmin, s_tmax, s_noise)
        raised = churn.raised_levels(levels, len(timesteps))
        super().__init__(timesteps, levels, edm_scaling(self.config, levels, raised), churn)
