"""Cost of a step outside the engine: `python -m benchmarks.overhead [--json FILE]`.

The UNet is a stand-in that returns at once. What remains of a step at 512x512 with guidance is the
host's work: scaling, feeds and their checks, guidance, the scheduler, and copies for the caller. It
is compared with the same work in diffusers (cat, scale_model_input, chunk, guidance and step on
PyTorch tensors), one thread each, in alternating runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.scheduler_inputs import CONFIG, SHAPE, fixed_noise
from benchmarks.timing import environment, parser, show_and_save
from sdexport.bench.measure import summary
from sdexport.engines import SessionBase, TensorSpec
from sdexport.engines.session import Feeds
from sdexport.runtime import schedulers
from sdexport.runtime.denoise import denoise
from sdexport.runtime.guidance import Guidance
from sdexport.runtime.initial_latents import InitialLatents

STEPS = 25
GUIDANCE_SCALE = 7.5
BOUND_US = 300.0
NAMES = ("ddim", "lms", "pndm", "euler", "euler_a", "dpmsolver++", "unipc")


class Instant(SessionBase):
    """A UNet with the names and shapes of SD 1.5 that always returns the same output."""

    def __init__(self, noise_pred: np.ndarray) -> None:
        space = ("height", "width")
        inputs = (
            TensorSpec("sample", "float32", ("batch", 4, *space)),
            TensorSpec("timestep", "float32", (1,)),
            TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", 768)),
        )
        outputs = (TensorSpec("out_sample", "float32", ("batch", 4, *space)),)
        super().__init__("unet", inputs, outputs)
        self._noise_pred = noise_pred

    def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return {"out_sample": self._noise_pred}


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Latents, the UNet's output for both halves, embeddings, and noise; all float32."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    return draw(*SHAPE), draw(2, *SHAPE[1:]), draw(2, 77, 768), draw(*SHAPE)


def walk_ours(name: str) -> tuple[np.ndarray, list[float]]:
    """Latents of one image, and the seconds of each step after the first, which binds inputs."""
    latents, noise_pred, embeds, noise = arrays()
    sampler = schedulers.create(name, CONFIG, STEPS)
    seconds, end = [], latents
    loop = denoise(
        Instant(noise_pred),
        InitialLatents(latents),
        embeds,
        sampler,
        guidance=Guidance(GUIDANCE_SCALE),
        draw=lambda shape: noise,
    )
    started = time.perf_counter()
    for step in loop:
        now = time.perf_counter()
        seconds.append(now - started)
        started, end = now, step.latents
    return end, seconds[1:]


def walk_theirs(name: str) -> tuple[np.ndarray, list[float]]:
    """The same with diffusers."""
    import torch

    from tests.helpers.diffusers_schedulers import build_twin

    latents, both, _, noise = map(torch.from_numpy, arrays())
    theirs, options = build_twin(name, CONFIG, STEPS, {})
    seconds = []
    with torch.inference_mode(), fixed_noise(type(theirs), noise):
        latents = latents * theirs.init_noise_sigma
        for timestep in theirs.timesteps:
            started = time.perf_counter()
            theirs.scale_model_input(torch.cat([latents] * 2), timestep)
            uncond, text = both.chunk(2)
            noise_pred = uncond + GUIDANCE_SCALE * (text - uncond)
            latents = theirs.step(noise_pred, timestep, latents, **options).prev_sample
            seconds.append(time.perf_counter() - started)
    return latents.numpy(), seconds[1:]


def measure(rounds: int, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """Microseconds of a step for each scheduler, ours and diffusers'.

    Raises: ValueError: the final latents differ.
    """
    walks: dict[str, Callable[[str], tuple[np.ndarray, list[float]]]] = {
        "ours": walk_ours,
        "diffusers": walk_theirs,
    }
    rows = {}
    for name in names:
        samples: dict[str, list[float]] = {peer: [] for peer in walks}
        ends = {peer: walk(name)[0] for peer, walk in walks.items()}
        scale = float(np.abs(ends["diffusers"]).max())
        if not np.abs(ends["ours"] - ends["diffusers"]).max() <= 5e-3 * scale:
            raise ValueError(f"{name}: the final latents differ from diffusers'")
        for _ in range(rounds):
            for peer, walk in walks.items():
                samples[peer] += [1e6 * s for s in walk(name)[1]]
        rows[name] = {peer: summary(values, "us") for peer, values in samples.items()}
    return rows


def main() -> None:
    import torch

    args = parser("overhead", __doc__).parse_args()
    torch.set_num_threads(1)
    rows = measure(max(args.repeats // STEPS, 2))
    worst = max(row["ours"]["median_us"] for row in rows.values())
    report = {
        **environment("numpy", "torch", "diffusers"),
        "steps": STEPS,
        "shape": SHAPE,
        "dtype": "float32",
        "threads": 1,
        "guidance_scale": GUIDANCE_SCALE,
        "bound_us": BOUND_US,
        "worst_median_us": worst,
        "schedulers": rows,
    }
    show_and_save(report, rows, args)
    print(f"slowest: {worst:.0f} us; the bound is {BOUND_US:.0f} us")


if __name__ == "__main__":
    main()
