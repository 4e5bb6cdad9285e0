"""Every tolerance of the test suite, each with its reason; and how a failing comparison speaks."""

from __future__ import annotations

import sys

import numpy as np
import torch

from sdexport.verification import verifier

_AVX2 = torch.backends.cpu.get_cpu_capability().startswith("AVX") and sys.platform != "win32"
NOISE_ABS = 1e-6 if _AVX2 else 3e-6
"""torch.randn: float32 logarithm, sine and cosine differ by an ulp or two, and one is 4.8e-7 where
the radius is largest; of 1.5e10 values the compiled noise differed by at most 4.8e-7, of 13 million
NumPy's by 7.2e-7. Where PyTorch does not use its AVX2 code, it computes the angle of a block in
double and rounds it once, so that it is another float now and then: of 7e9 values 2.8e-6."""

BOX_MULLER_ABS = 1e-6
"""Either source of noise against float64, every radius and every angle once, from the same rounded
angle: the compiled one is within 7.6e-7; NumPy's, which varies with the processor, was within
6.0e-7."""

CUDA_NOISE_ABS = 1e-5
"""torch.randn on CUDA: its kernel takes the fast sine and cosine, whose absolute error the CUDA
programming guide gives as 2**-21.2 (4.2e-7) near zero and larger further out; times a radius of at
most 6.7. Not measured yet: no GPU was at hand."""

CUDA_NOISE_PRINTED_ABS = 5.1e-5
"""Recorded values were printed with four decimals."""

SCHEDULER_FLOAT64_REL = 5e-10
"""Whole trajectories of up to 50 steps with a nonlinear stand-in for the UNet, relative to the
largest value of the latents, diffusers running with float64 tables: what remains is rounding and
its growth along the trajectory. Measured: at most 9.3e-11
(DEIS, squaredcos_cap_v2, whose noise levels begin in the thousands), mostly 1e-14."""

SCHEDULER_FLOAT32_REL = 5e-3
"""The same in float32 against diffusers as it is: the error of its float32 tables (a cumulative
product of 1000 factors, relative error 1e-6) is divided by small noise levels and amplified by
the stand-in. Measured: at most 3.4e-3 (ancestral DPM2), mostly 1e-6."""

SCHEDULER_FLOAT32_STEEP_REL = 0.3
"""The same for the beta schedules squaredcos_cap_v2 and exp: a step from a noise level in the
thousands down to one near zero cancels all but a few digits of a float32. Measured: 0.16 (Heun,
exp, three steps) where float64 agrees to 1e-12, else at most 2.7e-2."""

TIMESTEP_ABS = 0.02
"""Fractional timesteps that diffusers finds back from sigmas interpolate float32 logarithms; in
parts of one of 1000 training steps. The largest is the midpoint of ancestral DPM2, a difference
of nearly equal squares: 1e-2. Whole timesteps are compared exactly."""

COMPONENT_REL = verifier.COMPONENT_BOUND
"""The product's own bound, argued in verifier.py: ONNX against PyTorch, float32."""

LOWER_COSINE = {"fp16": 1e-6, "bf16": 1e-4, "int8": 2e-4}
"""1 - cosine between PyTorch in float32 and a graph of the embedded model. Numbers of 11 and 8
bits are 2**-12 and 2**-9 off at most, the cosine feels the square of that, and some sixty layers
add up. Measured at most: fp16 6.8e-8, bf16 2.8e-5 and int8 3.7e-5 (the pooled text)."""

LOWER_PICTURE_PSNR = {"fp16": 50.0, "bf16": 40.0, "int8": 40.0}
"""Decibels between pictures of the embedded model in a lower precision and in float32: four steps
recorded by PyTorch, and the median of the held-out prompts after 25 steps. Measured: the recorded
picture 66.6, 45.4 and 46.2."""

ACCURACY_POINTS = 0.01
"""How far the share of prompts painted rightly may be from that in float32: the bound asked for."""

BF16_COSINE = 0.9999
"""OpenVINO in bf16 (8 bits of mantissa, float32 sums) against ONNX Runtime in float32, the embedded
UNet: 4.5e-3 of the output's scale and a cosine of 0.99999 were measured."""

GPU_COMPONENT_REL = 5e-3
"""A float32 graph on a GPU against PyTorch on the CPU: TF32 keeps 10 bits of mantissa in products,
2**-11 each, and errors of some sixty layers add up. Not measured yet: no GPU was at hand."""

PICTURE_ABS = verifier.PICTURE_BOUND
"""Steps of 255 between our picture and diffusers', see sdexport/verification/verifier.py."""

BLEND_ABS = 1e-6
"""Blending weights are float32 and add up to one within an ulp or two; values are at most 1."""

TILED_MEAN = 6.0
"""Steps of 255 between a picture decoded in tiles and whole, on average. The VAE's attention and
group norms see one tile instead of the picture, so flat colours shift a little. Measured on the
embedded model, made for 128x128: 4.1 with tiles of 64, 1.8 with 128, 1.3 with 192."""

TILED_LATENTS = 0.2
"""The same for encoding, over the standard deviation of the latents: 0.13 with tiles of 64, 0.07
with 128."""

TILED_SEAM = 0.4
"""Steps of 255 that neighbouring pixels may differ more where tiles begin and end than elsewhere,
beyond what they do in the whole picture. Measured: 0.1."""

TILING_MEMORY = 1.3
"""Peak memory of 1024x1024 in tiles of 512 over 512x512 whole: the result and its pixels come on
top of the same activations."""

CLEAN_REL = 1e-3
"""Clean latents at the first step, from two formulas in float32: at the highest noise level the
prediction is multiplied by 14.6 before it is subtracted."""

BATCH_LATENTS_ABS = 1e-4
"""Latents of a batch against single pictures, and of one max_batch against another. Measured with
ONNX Runtime on x86-64: 0, after 20 steps too; a library that adds in another order for matrices of
other shapes may differ in the last bits."""

LOW_MEMORY_MB = 40.0
"""What a picture with low_memory may take beyond its largest component alone: the pipeline's own
modules, the tokenizer, latents and pixels. Measured at 512x512 with the embedded model: 20."""

LEAK_MB = 10.0
"""Resident memory between the 50th and the 200th picture: the allocator's own unrest."""

RESCALE_REL = 1e-5
"""Guidance rescale against the formula in PyTorch: standard deviations in float32, summed in
another order."""

PREVIEW_CORRELATION = 0.975
"""The linear preview of finished latents against the VAE's picture at one pixel a cell, each
colour for itself. Measured on the embedded model: 0.986 to 0.992; on average 11 to
14 of 255 apart."""

DOCS_PICTURE_MEAN = 2.0
"""Mean difference, of 255, between a picture of the docs and the same painted anew: another
processor's rounding, grown over the steps, and the WebP compression of both."""

FUSED_ABS = 2e-7
"""A weight with a LoRA merged into it, of a magnitude below one, against diffusers' own: the same
products of float32, scaled before or after the sum. Measured: at most 6e-8."""


SPLIT_REL = 1e-6
"""A model cut in two against the whole, float32, two layers: OpenVINO chooses other kernels for the
parts, which sum in another order. Measured: at most 8e-8 of the output's scale."""

INT8_RMS = 0.06
"""A layer with 8-bit activations and weights against float32, root mean squares: a step of 1/256 of
16 standard deviations is 6 % of one, its error 2 %; channels of unequal size double it. Measured:
0.013 to 0.046."""

INT8_COSINE = 0.999
"""A component of the embedded model with 8-bit convolutions against float32. Measured: 0.9997."""

INT8_PICTURE_PSNR = 25.0
"""A picture of the embedded model with 8-bit arithmetic against float32's, eight steps.
Measured: 32 to 33."""

WINOGRAD_REL = 1e-5
"""A convolution by Winograd's tiles, or by halves, against a direct one, float32, at most 1,024
channels. Measured: at most 4e-6 of the output's scale (tiles of 4), 1e-6 for the others."""

WINOGRAD_BF16_REL = 1e-2
"""The same with inputs and outputs in bfloat16 (2**-9): one rounding of the result.
Measured: 4e-3."""

CONVOLUTION_FLOAT64_REL = 1e-12
"""The same in float64: what is left is rounding. Measured: 4e-16."""


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
