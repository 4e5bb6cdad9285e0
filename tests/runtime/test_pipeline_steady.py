"""Batches, interruptions, threads and memory."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport import Package, Pipeline, Result
from sdexport.engines import EngineError
from sdexport.engines.session import Feeds
from sdexport.runtime.denoise import DenoiseStep
from sdexport.runtime.text.blending import EmbedSchedule, crossfade
from tests.helpers.counting_session import Counting
from tests.tolerances import BATCH_LATENTS_ABS, IMAGE_ABS, LEAK_MB

FAST: dict[str, Any] = {"num_inference_steps": 3, "scheduler": "euler_a"}
PROMPTS = ["a red circle", "a blue star", "a green square"]
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def over(pipe: Pipeline, package: Path, **options: Any) -> Pipeline:
    """Another pipeline over the same sessions."""
    sessions = {name: pipe.session(name) for name in COMPONENTS} | options.pop("sessions", {})
    return Pipeline(Package.load(package, verify=False), sessions=sessions, **options)


def assert_near(ours: Result, expected: Result) -> None:
    assert np.abs(ours.latents - expected.latents).max() <= BATCH_LATENTS_ABS
    for a, b in zip(ours.images, expected.images, strict=True):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= IMAGE_ABS


@pytest.mark.parametrize("max_batch", [1, 2])
@pytest.mark.parametrize("given", ["text", "image", "mask"])
def test_max_batch_changes_nothing(
    pipe: Pipeline, package: Path, max_batch: int, given: str
) -> None:
    arguments: dict[str, Any] = FAST | {"seed": 3}
    if given != "text":
        arguments |= {"image": [IMAGE, IMAGE[::-1], IMAGE[:, ::-1]], "strength": 0.7}
    if given == "mask":
        arguments["mask_image"] = IMAGE[..., 0]
    small = over(pipe, package, max_batch=max_batch)
    assert_near(small(PROMPTS, **arguments), pipe(PROMPTS, **arguments))


@pytest.mark.parametrize("scheduler", ["ddim", "lms", "euler_a", "dpm2_a", "dpmsolver++"])
def test_batch_of_seeds_equals_single_pictures(pipe: Pipeline, scheduler: str) -> None:
    many = pipe(PROMPTS, seed=[5, 0, 2**40], num_inference_steps=4, scheduler=scheduler)
    for i, (prompt, seed) in enumerate(zip(PROMPTS, [5, 0, 2**40], strict=True)):
        one = pipe(prompt, seed=seed, num_inference_steps=4, scheduler=scheduler)
        assert np.abs(one.latents - many.latents[i : i + 1]).max() <= BATCH_LATENTS_ABS
        difference = np.asarray(one.images[0], int) - np.asarray(many.images[i], int)
        assert np.abs(difference).max() <= IMAGE_ABS


def test_images_per_prompt_equal_prompts_written_out(pipe: Pipeline) -> None:
    short = pipe(PROMPTS[:2], ["a", "b"], num_images_per_prompt=2, seed=1, **FAST)
    written = pipe([p for p in PROMPTS[:2] for _ in range(2)], ["a", "a", "b", "b"], seed=1, **FAST)
    assert short.latents.tobytes() == written.latents.tobytes()
    assert [p.prompt for p in short.parameters] == [p.prompt for p in written.parameters]
    assert [p.batch_index for p in short.parameters] == [0, 1, 2, 3]


def test_seeds_are_reported_as_torch_takes_them(pipe: Pipeline) -> None:
    for seed in (-2, [-2], np.array([-2]), np.int64(-2)):
        assert pipe("a star", seed=seed, **FAST).parameters[0].seed == 2**64 - 2


def test_ctrl_c_in_a_step_leaves_the_pipeline_usable(pipe: Pipeline) -> None:
    def interrupt(step: DenoiseStep) -> None:
        if step.index == 1:
            raise KeyboardInterrupt

    before = pipe("a star", seed=1, **FAST).latents
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            pipe("a star", seed=1, on_step=interrupt, **FAST)
    np.testing.assert_array_equal(pipe("a star", seed=1, **FAST).latents, before)


def test_leaving_the_loop_lets_go_of_the_embeddings(pipe: Pipeline, package: Path) -> None:
    class Bound(Counting):
        open = 0

        def bind(self, **constants: np.ndarray) -> Any:
            bound = super().bind(**constants)
            Bound.open += 1
            release = bound._release  # type: ignore[attr-defined]

            def count_and_release() -> None:
                Bound.open -= 1
                release()

            bound._release = count_and_release  # type: ignore[attr-defined]
            return bound

    watched = over(pipe, package, sessions={"unet": Bound(pipe.session("unet"))})

    def interrupt(step: DenoiseStep) -> None:
        assert Bound.open == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched("a star", seed=1, on_step=interrupt, **FAST)
    assert Bound.open == 0


def test_last_step_belongs_to_the_receiver_too(pipe: Pipeline) -> None:
    def spoil(step: DenoiseStep) -> None:
        step.latents[:] = 0

    plain = pipe("a star", seed=1, **FAST)
    spoilt = pipe("a star", seed=1, on_step=spoil, **FAST)
    assert plain.images[0].tobytes() == spoilt.images[0].tobytes()


def test_threads_generate_the_same_images_as_one_thread(pipe: Pipeline) -> None:
    jobs: list[dict[str, Any]] = [
        {"scheduler": "ddim", "width": 64},
        {"scheduler": "lms", "height": 72, "guidance_scale": 1.0},
        {"scheduler": "euler_a", "image": IMAGE, "strength": 0.7},
        {"scheduler": "dpm2_a", "image": IMAGE, "mask_image": IMAGE[..., 0]},
        {"scheduler": "dpmsolver++", "num_images_per_prompt": 2},
        {"scheduler": "pndm", "prompt_weights": True},
    ]

    def generate(job: dict[str, Any]) -> bytes:
        return pipe("a (red:1.2) circle", num_inference_steps=5, seed=3, **job).latents.tobytes()

    expected = [generate(job) for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(generate, jobs + jobs[::-1])) == expected + expected[::-1]


@pytest.mark.parametrize(
    ("component", "where"),
    [
        ("text_encoder", "the prompt"),
        ("unet", "step 2"),
        ("vae_decoder", "the latents"),
        ("vae_encoder", "the image"),
    ],
)
def test_not_finite_numbers_name_component_and_step(
    pipe: Pipeline, package: Path, component: str, where: str
) -> None:
    class Broken(Counting):
        def _compute(self, feeds: Feeds) -> dict[str, np.ndarray]:
            outputs = super()._compute(feeds)
            if component != "unet" or len(self.batches) == 2:
                next(iter(outputs.values())).flat[3] = np.inf
            return outputs

    broken = over(pipe, package, sessions={component: Broken(pipe.session(component))})
    message = rf"^{component}: the output holds NaN or infinity \({where}\)$"
    with pytest.raises(EngineError, match=message):
        broken("a star", image=IMAGE, strength=0.8, num_inference_steps=4, seed=0)


def test_embeds_that_change_over_the_steps(pipe: Pipeline) -> None:
    parts = [pipe.encode([prompt]) for prompt in PROMPTS[:2]]
    arguments: dict[str, Any] = {"num_inference_steps": 4, "scheduler": "ddim", "seed": 2}
    seen: list[tuple[int, int]] = []

    def embeds(i: int, steps: int) -> np.ndarray:
        seen.append((i, steps))
        return EmbedSchedule(parts, crossfade(0.5, 0.5)).embeds_at(i, steps)

    mixed = pipe(prompt_embeds=embeds, num_images_per_prompt=2, **arguments)
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4)]
    first = pipe(PROMPTS[0], num_images_per_prompt=2, **arguments)
    assert np.abs(mixed.latents - first.latents).max() > 0.01
    alone = EmbedSchedule(parts, [[1.0, 0.0]]).embeds_at
    for scale in (1.0, 7.5):
        same = pipe(prompt_embeds=alone, guidance_scale=scale, **arguments)
        text = pipe(PROMPTS[0], guidance_scale=scale, **arguments)
        assert_near(same, text)


def test_embeds_instead_of_one_of_the_texts(pipe: Pipeline) -> None:
    plain = pipe("a star", "grey", seed=1, **FAST)
    for arguments in (
        {"prompt_embeds": pipe.encode(["a star"]), "negative_prompt": "grey"},
        {"prompt": "a star", "negative_prompt_embeds": pipe.encode(["grey"])},
    ):
        assert_near(pipe(seed=1, **arguments, **FAST), plain)


def test_prompt_weights_change_only_what_is_weighted(pipe: Pipeline) -> None:
    plain = pipe("a red circle", seed=1, **FAST)
    for prompt in ("a red circle", "a (red:1.0) circle"):
        assert_near(pipe(prompt, seed=1, prompt_weights=True, **FAST), plain)
    heavy = pipe("a (red:1.5) circle", seed=1, prompt_weights=True, **FAST)
    assert np.abs(heavy.latents - plain.latents).max() > 0.01
    long = pipe(["a red circle " * 40, "a star"], seed=1, prompt_weights=True, **FAST)
    assert len(long.images) == 2


@pytest.mark.parametrize("strength", [0.01, 0.3, 1.0])
def test_timesteps_of_the_caller_with_an_image(pipe: Pipeline, strength: float) -> None:
    """Second-order samplers call the UNet twice a step: a share of the steps, not of the calls."""
    timesteps = [900, 700, 500, 333, 20]
    arguments: dict[str, Any] = {"timesteps": timesteps, "image": IMAGE, "strength": strength}
    if strength < 0.2:
        with pytest.raises(ValueError, match=r"strength 0.01 leaves none of 5 steps; .* 0.2"):
            pipe("a star", scheduler="heun", **arguments)
        return
    seen: list[int] = []
    pipe("a star", scheduler="heun", on_step=lambda s: seen.append(s.index), **arguments)
    assert seen == list(range({0.3: 8, 1.0: 0}[strength], 9))


LEAK = """
import sys
from pathlib import Path
from sdexport import load_pipeline
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
pipe = load_pipeline(sys.argv[1], threads=1)
names = ["ddim", "lms", "euler_a", "dpmsolver++"]
for k in range(200):
    image = {"image": last, "strength": 0.7} if k % 5 == 4 else {"width": 64 + 8 * (k % 3)}
    last = pipe("a star", num_inference_steps=4, scheduler=names[k % 4], seed=k, **image).images[0]
    if k == 49:
        print(resident())
print(resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_stays_over_many_pictures(package: Path) -> None:
    command = [sys.executable, "-c", LEAK, str(package)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after_50, after_200 = map(float, done.stdout.split())
    assert after_200 - after_50 <= LEAK_MB, f"{after_50:.1f} MB, then {after_200:.1f} MB"
