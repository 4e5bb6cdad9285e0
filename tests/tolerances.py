"""Every tolerance of the test suite, each with its reason; and how a failing comparison speaks."""

from __future__ import annotations

import numpy as np

from sdexport import verify

NOISE_ABS = 1e-6
"""torch.randn: float32 logarithm, sine and cosine of NumPy and PyTorch differ by an ulp or two;
the largest of 2.6 million values measured was 4.8e-7."""

CUDA_NOISE_ABS = 1e-5
"""torch.randn on CUDA: its kernel takes the fast sine and cosine, whose absolute error the CUDA
programming guide gives as 2**-21.2 (4.2e-7) near zero and larger further out; times a radius of at
most 6.7. Not measured yet: no GPU was at hand."""

CUDA_NOISE_PRINTED_ABS = 5.1e-5
"""Recorded values were printed with four decimals."""

SCHEDULER_STEP_REL = 1e-5
SCHEDULER_STEP_ABS = 1e-6
"""One step on the same inputs: diffusers computes its schedule in float32 (cumulative product of
1000 factors, relative error about 1e-6), ours in float64."""

SCHEDULER_TRAJECTORY_REL = 1e-4
"""Up to 50 steps with a nonlinear stand-in for the UNet, relative to the largest value: the error
of diffusers' float32 schedule is carried along and amplified. Measured: at most 3e-5."""

KARRAS_TIMESTEP_ABS = 2e-3
"""Timesteps found back from Karras sigmas interpolate diffusers' float32 logarithms; they are
fractions of one of 1000 training steps."""

COMPONENT_REL = verify.COMPONENT_BOUND
"""The product's own bound, argued in sdexport/verify.py: ONNX against PyTorch, float32."""

PICTURE_ABS = verify.PICTURE_BOUND
"""Steps of 255 between our picture and diffusers', see sdexport/verify.py."""


def assert_close(
    actual: np.ndarray, expected: np.ndarray, *, rel: float = 0.0, abs_: float = 0.0
) -> None:
    """|actual - expected| <= abs_ + rel * max|expected| everywhere, with a telling message."""
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape}"
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert np.isfinite(a).all(), "the actual values are not all finite"
    scale = float(np.abs(b).max())
    worst = float(np.abs(a - b).max())
    bound = abs_ + rel * scale
    norms = float(np.linalg.norm(a) * np.linalg.norm(b)) or 1.0
    assert worst <= bound, (
        f"max abs {worst:.3e}, max rel {worst / (scale or 1):.3e}, "
        f"cosine {float(a.ravel() @ b.ravel()) / norms:.9f}, {worst / bound:.0%} of the tolerance"
    )
