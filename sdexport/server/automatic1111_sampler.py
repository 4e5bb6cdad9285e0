"""AUTOMATIC1111's sampler, schedule type and sampler parameters as arguments of a pipeline call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.schedulers.sampler_names import find_sampler, why_not_supported
from sdexport.runtime.schedulers.schedule_names import AUTOMATIC

ALWAYS_FULL_NOISE = (
    *("euler_a", "dpm2_a", "dpm++_2s_a", "dpm++_sde", "dpm++_2m_sde", "dpm++_2m_sde_heun"),
    "dpm++_3m_sde",
)
"""Samplers that add noise in each step, of which the web UI's `eta` is a factor; here it is 1."""
_CHURNED = ("euler", "heun", "dpm2")
"""Samplers that the web UI gives `s_churn`."""
_SCALED_NOISE = ("dpm++_sde", "dpm++_2s_a", "dpm++_3m_sde")
"""Samplers whose noise can be multiplied by `s_noise` here."""


def sampler_arguments(fields: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments `scheduler`, `schedule`, `scheduler_options` and `eta`.

    Args:
      fields: of a request, checked. options: of the server.
    Raises: InvalidArgumentError: an unknown sampler, or parameters that it does not have here.
    """
    name = fields["sampler_name"] or fields["sampler_index"] or "Euler"
    found = find_sampler(name)
    if found is None:
        why = why_not_supported(name)
        reason = f"is not supported: {why[1]}" if why else "is unknown"
        raise InvalidArgumentError(
            f"sampler_name: {shown(name)} {reason}; GET /sdapi/v1/samplers lists all"
        )
    arguments: dict[str, Any] = {
        "scheduler": found.name,
        "schedule": found.schedule or fields["scheduler"] or AUTOMATIC,
    }
    eta = _eta(found.name, fields["eta"], options)
    if eta:
        arguments["eta"] = eta
    parameters = _noise_parameters(found.name, fields)
    if parameters:
        arguments["scheduler_options"] = parameters
    return arguments


def _eta(sampler: str, eta: float | None, options: Mapping[str, Any]) -> float:
    """Of DDIM.

    Raises: InvalidArgumentError: a sampler that adds noise would add less or more.
    """
    if sampler == "ddim":
        return float(options["eta_ddim"] if eta is None else eta)
    if sampler in ALWAYS_FULL_NOISE and eta not in (None, 1):
        raise InvalidArgumentError(
            f"eta: {eta:g} is not supported for this sampler, which has 1 here"
        )
    return 0.0


def _noise_parameters(sampler: str, fields: Mapping[str, Any]) -> dict[str, float]:
    """Options of the sampler for s_churn, s_tmin, s_tmax and s_noise.

    Raises: InvalidArgumentError: it does not have them.
    """
    churn, noise = fields["s_churn"] or 0, 1 if fields["s_noise"] is None else fields["s_noise"]
    if sampler == "euler" and churn:
        found = {"s_churn": churn, "s_tmin": fields["s_tmin"] or 0, "s_noise": noise}
        return found | ({"s_tmax": fields["s_tmax"]} if fields["s_tmax"] else {})
    if sampler in _CHURNED and churn:
        raise InvalidArgumentError(
            f"s_churn: {churn:g} is not supported for this sampler, only for Euler"
        )
    if sampler in ALWAYS_FULL_NOISE and noise != 1:
        if sampler not in _SCALED_NOISE:
            raise InvalidArgumentError(f"s_noise: {noise:g} is not supported for this sampler")
        return {"s_noise": noise}
    return {}
