"""Every tolerance of the tests, each with its reason, and `assert_close`.

Names end in what they bound:

    _ABS     largest absolute difference (images: steps of 255)
    _REL     the same, divided by the largest absolute value of the expected array
             (np.testing and pytest.approx: divided by each expected value)
    _COSINE  1 - cosine, or the smallest cosine where the docstring says so
    _MEAN    mean absolute difference of images, in steps of 255
    _PSNR    smallest peak signal-to-noise ratio of images, in decibels

"Measured" is the largest value seen with the pinned versions on x86-64. The numbers are the tests'
own: a wider bound in the product does not widen them.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

# Noise

_AVX2 = torch.backends.cpu.get_cpu_capability().startswith("AVX") and sys.platform != "win32"
NOISE_ABS = 1e-6 if _AVX2 else 3e-6
"""CPU noise against torch.randn. Float32 logarithm, sine and cosine differ by one or two units in
the last place, and one unit is 4.8e-7 where the radius is largest. Measured: 4.8e-7 for the
compiled noise (1.5e10 values), 7.2e-7 for NumPy's (1.3e7 values). Without AVX2, PyTorch computes
the angle in double precision and rounds it once, so a few angles differ by one unit. Measured:
2.8e-6 (7e9 values)."""

BOX_MULLER_ABS = 1e-6
"""Both noise implementations against float64, for every radius and every angle, from the same
rounded angle. Measured: 7.6e-7 compiled, 6.0e-7 NumPy (which depends on the processor)."""

CUDA_NOISE_ABS = 1e-5
"""Philox noise against torch.randn on CUDA. Its kernel uses the fast sine and cosine, whose
absolute error is 2**-21.2 (4.2e-7) near zero and larger further out (CUDA programming guide); the
radius is at most 6.7. Not measured (no hardware)."""

CUDA_NOISE_PRINTED_ABS = 5.1e-5
"""The same against recorded values that were printed with four decimals."""

# Control images

GAUSSIAN_ABS = 1e-4
"""A Gaussian blur of levels of 0..255 in float32 against OpenCV, which sums up to 49 products in
another order: a few units in the last place of 255 (1.5e-5)."""

CONTROL_IMAGE_ABS = 1
"""Line art against its definition with OpenCV, in levels of 255: what is rounded down may fall on
either side of an integer."""

# Schedulers

SCHEDULER_FLOAT64_REL = 5e-10
"""Trajectories of up to 50 steps against diffusers with float64 tables, with a nonlinear function
in place of the UNet. What remains is rounding and its growth along the trajectory. Measured:
9.3e-11 (DEIS with squaredcos_cap_v2, whose sigmas begin in the thousands), mostly 1e-14."""

SCHEDULER_FLOAT32_REL = 5e-3
"""The same in float32 against diffusers as it is. The error of its float32 tables (a cumulative
product of 1000 factors, 1e-6 relative) is divided by small sigmas and amplified along the
trajectory. Measured: 3.4e-3 (ancestral DPM2), mostly 1e-6."""

SCHEDULER_FLOAT32_STEEP_REL = 0.3
"""The same for the beta schedules squaredcos_cap_v2 and exp. A step from a sigma in the thousands
to one near zero cancels all but a few digits of a float32. Measured: 0.16 (Heun, exp, three steps),
where float64 agrees to 1e-12; otherwise at most 2.7e-2. And for DEIS with use_beta_sigmas, which
extrapolates from large steps (4.4e-2), and for SA-Solver of order 3 and 4, whose coefficients
cancel in small steps (0.19)."""

K_DIFFUSION_LEVELS_REL = 1e-5
"""Noise levels against k-diffusion's functions, which compute them in float32. Measured: 1e-6."""

TIMESTEP_ABS = 0.02
"""Fractional timesteps, of 1000, which diffusers interpolates from float32 logarithms of sigmas.
Measured: 1e-2 (the midpoint of ancestral DPM2). Whole timesteps are compared exactly."""

ADD_NOISE_REL = 1e-5
"""`add_noise` in float32 against diffusers, whose tables are float32: 1e-6 relative, see above."""

CLEAN_SAMPLE_ABS = 1e-9
"""Clean latents of magnitude 4 that a scheduler must recover in float64 from the true noise. What
remains is rounding, amplified by sigmas of up to 15."""

DEIS_CLEAN_SAMPLE_ABS = 0.2
"""The same for DEIS, which ends at the first training timestep (sigma 0.029) and not at zero
noise."""

BETA_QUANTILE_ABS = 1e-11
"""Quantiles of beta distributions against SciPy. Measured: 5e-13, and 7e-16 for the shape that the
schedules have."""

LMS_REL = 1e-9
"""Coefficients of LMS in float64 against hand-computed steps and integrals."""

CLEAN_REL = 1e-3
"""Clean latents at the first step, by two formulas in float32. At the highest noise level the
prediction is multiplied by 14.6 before it is subtracted."""

# Components

COMPONENT_REL = 5e-5
"""A float32 ONNX graph against the PyTorch module. Two kernels that sum a few thousand products in
another order differ by 1e-6 to 1e-5 after some sixty layers. Measured: 8.3e-6 (VAE decoder of SD
1.5). A change of 10 % in one weight tensor of the demo UNet gives 2.9e-4."""

LOWER_COMPONENT_L2 = {"fp16": 1e-3, "bf16": 1.5e-2, "int8": 2e-2}
"""Relative L2 error of a graph of the demo model in a lower precision against PyTorch in float32.
Numbers of 11 and 8 bits are off by at most 2**-12 and 2**-9, and some sixty layers add up.
Measured: fp16 3.9e-4, bf16 7.6e-3, int8 9e-3 (the pooled text)."""

MIXED_TOKENS_L2 = 4.5e-2
"""Relative L2 error of text encoders in a lower precision whose tokens were mixed, against
transformers in float32. Their weights are random, so errors are larger than the demo model's."""

FLOAT32_PRODUCT_REL = 1e-6
"""A sum of eight float32 products against NumPy's: two or three units in the last place."""

MAPPED_PRODUCT_REL = 1e-5
"""Four matrix products in a row whose weights are not copied into another layout, of the scale: the
1,024 terms of each sum are added in another order."""

HALF_GROUP_NORM_REL = 2e-3
"""Group normalization in float16 against float32: the normalized values, their product with the
scale and the sum are each rounded to 11 bits, 2**-11 of what may be the largest value."""

GPU_COMPONENT_REL = 5e-3
"""A float32 graph on a GPU against PyTorch on the CPU. TF32 keeps 10 bits of mantissa in products,
2**-11 each, and the errors of some sixty layers add up. Not measured (no hardware)."""

GPU_LATENTS_REL = 5e-2
"""Latents after four steps on a GPU: ten times GPU_COMPONENT_REL, because guidance multiplies the
difference of two predictions by 7.5. Not measured (no hardware)."""

GPU_TASK_COSINE = 0.9999
"""Smallest cosine of the GPU benchmark's outputs against float32. The test runs it on the CPU."""

GPU_TASK_IMAGE_MEAN = 2.0
"""Mean difference, of 255, of the demo model's image in fp16 after two steps. Measured 0.54, with
single values of 7, as noise is left after two steps; another image differs by more than 30."""

BF16_COSINE = 0.9999
"""Smallest cosine of the demo UNet in OpenVINO with bf16 (8 bits of mantissa, float32 sums) against
ONNX Runtime in float32. Measured: 0.99999, and 4.5e-3 of the output's scale."""

SPLIT_REL = 1e-6
"""A model cut in two against the whole, float32, two layers. OpenVINO chooses other kernels for the
halves, which sum in another order. Measured: 8e-8."""

LOW_RANK_REL = 1e-5
"""Layers with factors of a LoRA on OpenVINO, rewritten, against ONNX Runtime, float32; some by
Winograd tiles. Measured: 2.5e-6."""

LOW_RANK_BF16_REL = 2e-2
"""The same computed in bfloat16 (2**-9), up to four layers. Measured: 6.7e-3."""

INT8_RMS = 0.06
"""A layer with 8-bit activations and weights against float32, ratio of root mean squares. A step of
1/256 of 16 standard deviations is 6 % of one and its error 2 %; channels of unequal size double it.
Measured: 0.013 to 0.046."""

INT8_COSINE = 0.999
"""Smallest cosine of a component of the demo model with 8-bit convolutions against float32.
Measured: 0.9997."""

WINOGRAD_REL = 1e-5
"""A convolution by Winograd tiles, or by halves, against a direct one, float32, at most 1,024
channels. Measured: 4e-6 (tiles of 4), 1e-6 for the others."""

WINOGRAD_BF16_REL = 1e-2
"""The same with inputs and outputs in bfloat16 (2**-9): one rounding of the result. Measured:
4e-3."""

CONVOLUTION_FLOAT64_REL = 1e-12
"""The same in float64: rounding only. Measured: 4e-16."""

OTHER_PROCESSOR_REL = 5e-5
"""Reference outputs of PyTorch in float32 on two processors. Measured with PyTorch's kernels for
AVX-512 and for no vector instructions: up to 5.2e-6."""

FOUR_DIGITS_REL = 1e-3
"""Numbers written with four significant digits, from values that differ by rounding: one unit in
the last digit is at most 1e-3 of the number."""

OTHER_PROCESSOR_IMAGE_ABS = 1
"""Levels of 255 between images that PyTorch generates on two processors. Measured likewise: 1."""

# Sessions

SESSION_OPTIONS_ABS = 1e-4
"""Outputs of the demo UNet, of magnitude 4, with other optimization levels, numbers of threads and
memory settings of ONNX Runtime: other kernels sum in another order, as in COMPONENT_REL."""

THREADS_ABS = 1e-5
"""Outputs of one session called from several threads against the same calls in turn: the same
kernels; a library may divide their sums differently."""

FAKE_ENGINE_REL = 1e-5
"""Outputs of the fake TensorRT engine, which computes a short formula, against NumPy's own."""

FAKE_ENGINE_ABS = 1e-6
"""The same for values near zero."""

FAKE_ENGINE_DIFFERENCE_ABS = 1e-5
"""Difference of two of its outputs of magnitude 4, each rounded to float32."""

# Text

EMBEDS_REL = 1e-5
"""Embeddings that are scaled, mixed and averaged in float32 against the same in another order: each
of a few operations rounds by 6e-8."""

EMBEDS_ABS = 1e-6
"""The same for values near zero, where terms of magnitude 4 cancel."""

BLENDED_EMBEDS_REL = 1e-6
"""Blends of two embeddings, two products and a sum in float32, against hand-computed values."""

# Images

IMAGE_ABS = 1
"""Steps of 255 between two images that must be the same. Rounding to 8 bits may go to either side
of a half, never further."""

LOWER_IMAGE_PSNR = {"fp16": 50.0, "bf16": 40.0, "int8": 40.0}
"""Images of the demo model in a lower precision against float32: four steps recorded by PyTorch,
and the median of the held-out prompts after 25 steps. Measured on the recorded image: 66.6, 45.4,
46.2."""

LOWER_IMAGE_RMS = {"fp16": 0.8, "bf16": 2.6, "int8": 2.6}
"""The recorded image again, as root mean square of the difference in steps of 255: the numbers of
LOWER_IMAGE_PSNR. Measured: 0.12, 1.4, 1.3."""

INT8_IMAGE_PSNR = 25.0
"""An image of the demo model with 8-bit arithmetic against float32, eight steps. Measured: 32 to
33."""

ACCURACY_POINTS = 0.01
"""Difference to float32 in the share of prompts whose image shows what they say."""

PREPARED_HALF_IMAGE_ABS = 3
"""Images of a prepared fp16 package against the fp16 package itself: their kernels round to half
precision at different places."""

KEPT_IMAGE_MEAN = 12.0
"""Half of an image that inpainting must keep, encoded and decoded by the VAE, against its flat
colour."""

BLEND_ABS = 1e-6
"""Blending weights of tiles are float32 and add up to one within one or two units in the last
place; values are at most 1."""

TILED_MEAN = 6.0
"""An image decoded in tiles against the whole. The VAE's attention and group norms see one tile
instead of the whole image, so flat colours shift a little. Measured on the demo model, made for
128x128: 4.1 with tiles of 64, 1.8 with 128, 1.3 with 192."""

TILED_LATENTS = 0.2
"""The same for encoding, divided by the standard deviation of the latents. Measured: 0.13 with
tiles of 64, 0.07 with 128."""

TILED_SEAM = 0.4
"""Steps of 255 by which neighbouring pixels may differ more at the edges of tiles than elsewhere,
beyond what they do in the whole image. Measured: 0.1."""

POSTERIOR_REL = 2e-6
"""Samples of the VAE's posterior against diffusers: an exponential in float32, one or two units in
the last place, times the noise."""

POSTERIOR_ABS = 1e-6
"""The same for values near zero."""

JPEG_ABS = 60
"""A small upright image saved as JPEG and read again, at sharp edges."""

RESIZED_ABS = 1
"""An image of one colour, resized: fixed-point weights of the filter add up to one only nearly."""

PREVIEW_ROUNDING_ABS = 0.51
"""Pixels of a linear preview against the exact value: rounding to the nearest integer."""

PREVIEW_CORRELATION = 0.975
"""Smallest correlation, by colour, of the linear preview of finished latents with the VAE's image
at one pixel a cell. Measured on the demo model: 0.986 to 0.992; 11 to 14 of 255 apart on
average."""

VAE_PREVIEW_MEAN = 2.0
"""The last frame of an animation by the VAE against the image: lossy WebP."""

ANIMATION_ABS = 4
"""Frames of flat colours, saved as an animation (lossy WebP, or a GIF's palette) and read again."""

DOCS_IMAGE_MEAN = 2.0
"""An image of the docs against the same generated anew: another processor's rounding, grown over
the steps, and the WebP compression of both."""

FEW_CASES_OVERLAP = 0.75
"""Mean intersection over union of the objects with the outlines that the demo model's ControlNet is
given, in a few cases: less than the bound of all cases, for their spread."""

FEW_CASES_STYLED = 0.75
"""The share of images with the style of the demo model's LoRA, in a few cases, as above."""

COVERAGE_REL = 2e-3
"""Area of a circle of radius 30 from anti-aliased pixels against pi r**2."""

# Pipelines

BATCH_LATENTS_ABS = 1e-4
"""Latents of a batch against single images, and of one max_batch against another. Measured with
ONNX Runtime: 0, also after 20 steps; a library that sums in another order for other batch sizes may
differ in the last bits."""

COMPOSED_LATENTS_ABS = 5e-4
"""Latents of prompts composed with AND, in one batch or one prompt after the other. As above, and
the rounding of a prediction counts the guidance scale times the weights of the parts, here 13.
Measured: 2e-4."""

CALL_LATENTS_REL = 2e-5
"""Latents and embeddings of a whole call over the modules of a checkpoint against diffusers, after
up to eight steps: float32 tables of its schedulers, grown along the steps. Measured: 1.1e-6."""

SAME_LATENTS_ABS = 1e-5
"""Latents of the same calls of the UNet along two paths through the guidance code."""

RESCALE_REL = 1e-5
"""Guidance rescale against the formula in PyTorch: standard deviations in float32, summed in
another order."""

FLOAT64_REL = 1e-12
"""Results of a short formula in float64 against hand-computed values."""

# LoRA

FUSED_ABS = 2e-7
"""A weight of magnitude below one with a LoRA merged into it against diffusers: the same float32
products, scaled before or after the sum. Measured: 6e-8."""

FLOAT8_REL = 0.072
"""Weights that were stored as float8 with a scale, relative to the largest of a layer: half of the
step at the top of the range, 4096 of 57344 for float8_e5m2 and 16 of 448 for float8_e4m3fn."""

LORA_CONVOLUTION_ABS = 1e-2
"""A convolution with the merged change against the two or three convolutions of the LoRA in turn,
float32. Outputs have a magnitude of some hundreds and sums have 144 terms or more."""

LORA_CONVOLUTION_REL = 1e-4
"""The same, relative to each value."""

LORA_CHANGE_ABS = 1e-5
"""The change of a weight tensor, as the difference of two float32 weights of magnitude 10, against
the product of the LoRA's matrices: half precision would be off by 1e-3."""

LORA_WEIGHT_ABS = 1e-6
"""A weight of magnitude below one with two LoRAs merged into it against the formula in float32."""

LYCORIS_ABS = 1.5e-6
"""A weight of magnitude below three with a LoRA merged into it against what LyCORIS or PEFT merges,
float32: the same sums of some ten terms in another order. Measured: 3.6e-7."""

# Memory

TILING_MEMORY = 1.3
"""Ratio of the peak memory at 1024x1024 in tiles of 512 to that at 512x512 in one piece: the result
and its pixels come on top of the same activations."""

LOW_MEMORY_MB = 40.0
"""Memory of an image with low_memory beyond that of its largest component: the pipeline's modules,
the tokenizer, latents and pixels. Measured at 512x512 with the demo model: 20."""

LEAK_MB = 10.0
"""Growth of resident memory from the 50th to the 200th image: fluctuation of the allocator."""

SIZES_MB = 60.0
"""The same from the first quarter of images of many sizes to the last: OpenVINO keeps 100 kernels
of a kind, and the allocator what the largest image took. Measured on OpenVINO, from the 50th to the
300th image: 4 MB over 300 sizes, 20 MB over 40; with its own limit of 5000 kernels 829 and 80."""


def assert_close(
    actual: np.ndarray, expected: np.ndarray, *, rel: float = 0.0, abs_: float = 0.0
) -> None:
    """Assert |actual - expected| <= abs_ + rel * max|expected|, and show how far off it is."""
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


LORA_FACTORS_ABS = 3e-6
"""A product of factors, relative to its largest value, against the change that PyTorch merges: sums
of up to 64 float32 products in another order. Measured: 4e-7."""

LORA_LOWER_PRECISION = 4.0
"""Mean square of the difference of an image in a lower precision from float32, with a LoRA,
relative to that without one: the branch rounds as its layer does, and images differ in contrast."""

LORA_SWITCH_MB = 8.0
"""Growth of private memory over 90 images with another LoRA each. If the factors of each were kept,
200 kB, it would be 18 MB. Allocators differ by some MB."""

LORA_GRAPH_L2 = 1e-5
"""Relative L2 of a graph with LoRA inputs from PyTorch: float32 in another order. Measured: 5e-7; a
branch that is left out changes the output by 1e-2."""

ADAPTER_GRAPH_L2 = 1e-5
"""Relative L2 of a UNet's graph with the inputs of T2I-Adapters and IP-Adapters from PyTorch:
float32 in another order. An input that is left out changes the output by 1e-2 and more."""

UNION_RESIDUAL = 1e-5
"""Residuals of a ControlNet-Union, of their largest value, next to PyTorch's: float32 in another
order. A scale or a mode that is left out changes them by 1e-2 and more."""

FUSED_UNET_ABS = 1e-5
"""Noise predicted by one module of PyTorch whose weights lie at other addresses, so that its sums
may be in another order. Measured: 3.6e-7. Other groups of channels change it by 1e-3 and more."""

UNUSED_ABS = 1e-5
"""Pixels in 0..1 with adapters of scale 0: zeros are added, in a graph that is optimised in another
way."""

BICUBIC_ABS = 1e-4
"""Masks of 0 and 1 after bicubic interpolation, next to PyTorch's in float32. A mask that is moved
by one place differs by 1."""

RAMP_PIXEL_ABS = 0.08
"""A ramp from 0 to 1 over 40 pixels or more, resized to at least 17: the nearest pixel next to the
one of a Lanczos filter. It covers a pixel or two; another part of the image is a fifth away."""

MEMORY_ESTIMATE = 0.25
"""Relative error of an estimated memory peak. The peaks of one command differ by a tenth from run
to run and from processor to processor, and decide only between a warning and an error."""

MEMORY_GB = {
    "onnxruntime": 4.1,
    "openvino": 5.8,
    "openvino,precision=bf16": 2.5,
    "openvino,precision=i8": 1.8,
    "fp16 package": 3.7,
    "onnxruntime prepared": 4.5,
    "openvino,precision=bf16 prepared": 2.5,
}
"""Peak of resident memory of one image of SD 1.5 at 256x256: a tenth above what was measured."""
PREPARED_CPU = 0.8
"""Processor time with prepared graphs, of that without: two steps leave little but the start."""
REMEMBERED_CPU = 1.0
"""Seconds of a core: the hashes of 4.3 GB take 2.4."""

# Demo model

STYLE_AMOUNT_ABS = 0.1
"""Error of the measured amount of a style, where all of it is 1: edges of stripes and objects."""

STYLED_OVERLAP = 0.95
"""Least intersection over union of a scene's objects with what is found in its image: the pixels
on the edges of stars and of stripes may fall on either side."""

PREDICTED_LATENTS_ABS = 1e-4
"""Latents of variance 1 from noise that was computed from them in float32. The noisiest timestep
multiplies rounding by 15."""

# Fuzzing

FUZZ_SECONDS = 1.0
"""Processor time of reading one untrusted input, of a few kilobytes. Readers are linear, so they
need milliseconds; what is quadratic or worse takes seconds for the inputs that repeat a part."""

FUZZ_SLOWNESS = 4.0
"""How many times slower Python runs while coverage is recorded. Measured: 2.5 for the tokenizer."""

FUZZ_BYTES = 200 * 2**20
"""Memory that reading one such input may need at its peak. Files that legitimately need more are
larger than what is tried."""

FUZZ_SERVER_MB = 20.0
"""MB that the server's process may gain over 100,000 requests. 100 bytes of each would be 10."""

BATCH_LEVELS = 1
"""Levels of 255 by which an image of a batch may differ from that of its own call: libraries may
choose other kernels for other shapes. Measured on ONNX Runtime, CPU: 0."""
