"""Prompts that change from step to step and prompts of several parts, in whole pipeline runs (R6).

The expected latents come from denoising loops that are written out here, one prompt at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdexport import Package, Pipeline, TorchGenerator, load_pipeline
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.composition import compose
from sdexport.runtime.text.prompt_conditions import (
    PromptConditions,
    equal_lengths,
    prepare_prompts,
)
from sdexport.runtime.text.prompt_embeds import EmbedArguments, Text
from sdexport.runtime.text.prompt_styles import STYLES
from sdexport.runtime.text.prompt_texts import StepRange
from tests.helpers.counting_session import Counting
from tests.helpers.prompts import ANY_PROMPT
from tests.tolerances import COMPOSED_LATENTS_ABS, SAME_LATENTS_ABS

STEPS = 6
SIZE = {"height": 64, "width": 64}
FAST: dict[str, Any] = {"num_inference_steps": STEPS, "scheduler": "ddim", "seed": 0, **SIZE}
A1111: dict[str, Any] = FAST | {"prompt_style": "automatic1111"}
Prompts = Callable[[int], list[tuple[str, float]]]


def run_by_hand(
    pipe: Pipeline,
    prompts: Prompts,
    scale: float = 7.5,
    negative: Callable[[int], str] = lambda s: "",
) -> np.ndarray:
    """uncond + sum of weight * scale * (cond - uncond), a call of the UNet for each prompt."""
    scheduler = pipe.scheduler("ddim", STEPS)
    latents = TorchGenerator(0).randn((1, *pipe.latent_shape(64, 64)))
    unet = pipe.session("unet")

    def predict(text: str, i: int) -> np.ndarray:
        feeds = {
            "sample": latents,
            "timestep": np.full(1, scheduler.timesteps[i], np.float32),
            "encoder_hidden_states": pipe.encode([text]),
        }
        return unet.run(feeds)["out_sample"]

    for i in range(STEPS):
        uncond = predict(negative(i + 1), i)
        guided = uncond.copy()
        for text, weight in prompts(i + 1):
            guided += weight * scale * (predict(text, i) - uncond)
        latents = scheduler.step(guided, i, latents).prev_sample
    return latents


def assert_near(actual: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(actual - expected).max() <= COMPOSED_LATENTS_ABS


def test_prompt_without_syntax_is_the_plain_one(pipe: Pipeline) -> None:
    plain = pipe("a red circle", "blue", **FAST).latents
    for style in ("automatic1111", "comfyui"):
        same = pipe("a red circle", "blue", prompt_style=style, **FAST).latents
        assert same.tobytes() == plain.tobytes(), style


def test_editing_changes_the_prompt_after_a_step(pipe: Pipeline) -> None:
    found = pipe("a [red:blue:0.5] circle", "[star::2]", **A1111).latents
    expected = run_by_hand(
        pipe,
        lambda step: [(f"a {'red' if step <= 3 else 'blue'} circle", 1.0)],
        negative=lambda step: "star" if step <= 2 else "",
    )
    assert_near(found, expected)


def test_alternation_changes_the_prompt_in_every_step(pipe: Pipeline) -> None:
    found = pipe("a [red|blue|green] circle", **A1111).latents
    colours = ["green", "red", "blue"]
    assert_near(found, run_by_hand(pipe, lambda s: [(f"a {colours[s % 3]} circle", 1.0)]))


def test_and_composes_the_parts(pipe: Pipeline) -> None:
    found = pipe("a red circle AND a blue star :0.7", "green", **A1111).latents
    parts = [("a red circle", 1.0), ("a blue star", 0.7)]
    assert_near(found, run_by_hand(pipe, lambda s: parts, negative=lambda s: "green"))


def test_and_with_editing_in_a_part(pipe: Pipeline) -> None:
    found = pipe("a red circle :0.5 AND a [blue:green:2] star:-0.3", **A1111).latents
    expected = run_by_hand(
        pipe,
        lambda s: [("a red circle", 0.5), (f"a {'blue' if s <= 2 else 'green'} star", -0.3)],
    )
    assert_near(found, expected)


def test_weight_of_a_whole_prompt_scales_the_guidance(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    found = pipe("a red circle :0.5", **A1111).latents
    assert_near(found, pipe("a red circle", guidance_scale=3.75, **FAST).latents)
    assert "read as a weight of 0.5 of the whole prompt" in caplog.text


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_and_without_guidance_is_that_at_scale_one(pipe: Pipeline, scale: float) -> None:
    """The unconditional pass runs unless it cancels out."""
    found = pipe("a red circle AND a blue star", guidance_scale=scale, **A1111).latents
    parts = [("a red circle", 1.0), ("a blue star", 1.0)]
    assert_near(found, run_by_hand(pipe, lambda s: parts, scale=1.0))
    halves = pipe("a red circle:0.5 AND a blue star:0.5", guidance_scale=scale, **A1111).latents
    parts = [("a red circle", 0.5), ("a blue star", 0.5)]
    assert_near(halves, run_by_hand(pipe, lambda s: parts, scale=1.0))


def test_unconditional_pass_runs_where_it_is_needed(package: Path, pipe: Pipeline) -> None:
    unet = Counting(pipe.session("unet"))
    sessions: dict[str, Any] = {n: pipe.session(n) for n in ("text_encoder", "vae_decoder")}
    counted = Pipeline(Package.load(package, verify=False), sessions=sessions | {"unet": unet})
    for prompt, scale, rows in (
        ("a AND b", 7.5, 3),
        ("a AND b", 1.0, 3),
        ("a:0.5 AND b:0.5", 1.0, 2),
        ("[a|b]", 1.0, 1),
        ("[a|b]", 7.5, 2),
    ):
        unet.batches.clear()
        counted(prompt, guidance_scale=scale, **A1111)
        assert unet.batches == [rows] * STEPS, prompt
    unet.batches.clear()
    counted("a AND b", guidance_interval=(0.0, 0.5), cache_interval=(0.5, 1.0), **A1111)
    assert unet.batches == [3, 3, 3, 3]  # two predictions are reused


def test_batch_of_different_prompts_equals_single_images(pipe: Pipeline) -> None:
    prompts = ["a red circle", "[a|b] AND c :0.5 AND d", "a [red:blue:3] star", "blue " * 90]
    negatives = ["", "green", "[x:y:0.5]", "red " * 160]
    seeds: list[int] = [3, 1, 4, 1]
    many = pipe(prompts, negatives, **A1111 | {"seed": seeds}).latents
    for max_batch in (1, 3):
        with load_pipeline(pipe.package.folder, max_batch=max_batch, verify=False) as small:
            assert_near(small(prompts, negatives, **A1111 | {"seed": seeds}).latents, many)
    for i, prompt in enumerate(prompts):
        one = pipe(prompt, negatives[i], **A1111 | {"seed": seeds[i]}).latents
        assert_near(many[i : i + 1], one)


def test_long_prompts_are_not_padded_to_the_others_length(pipe: Pipeline) -> None:
    """The web UI and ComfyUI run them apart; repeated embeddings have the same attention."""
    long, guidance = "red " * 80 + "circle", {"guidance_scale": 4.0}
    for style in ("automatic1111", "comfyui"):
        found = pipe(long, "blue", **FAST | guidance, prompt_style=style).latents
        embeds, negative = (pipe.encode([text], prompt_style=style) for text in (long, "blue"))
        assert embeds.shape[1] == 154 and negative.shape[1] == 77
        doubled = np.concatenate([negative, negative], axis=1)
        expected = pipe(
            prompt_embeds=embeds, negative_prompt_embeds=doubled, **FAST | guidance
        ).latents
        assert_near(found, expected)


@pytest.mark.parametrize("scheduler", ["heun", "dpm2", "pndm", "euler_a"])
def test_steps_are_counted_and_not_calls_of_the_unet(pipe: Pipeline, scheduler: str) -> None:
    arguments = A1111 | {"scheduler": scheduler}
    texts = [f"number {n}" for n in range(STEPS)]
    edited = pipe(f"[{texts[0]}:{texts[1]}:2]", **arguments).latents
    first, second = (pipe.encode([text], [""]) for text in texts[:2])

    def embeds(i: int, calls: int) -> np.ndarray:
        step = i // 2 + 1 if calls == 2 * STEPS - 1 else i * STEPS // calls + 1
        return (first if step <= 2 else second)[1:]

    negative = {"negative_prompt_embeds": first[:1]}
    expected = pipe(prompt_embeds=embeds, **negative, **FAST | {"scheduler": scheduler}).latents
    assert np.abs(edited - expected).max() <= SAME_LATENTS_ABS


def test_steps_of_image_to_image_are_counted_from_the_first_that_runs(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    arguments = A1111 | {"image": image, "strength": 0.5, "scheduler": "ddim"}
    with caplog.at_level(logging.WARNING):
        edited = pipe("[a red:a blue:1] circle", **arguments).latents
    assert not caplog.records
    first, second = (pipe.encode([f"a {c} circle"]) for c in ("red", "blue"))
    plain = arguments | {"prompt_style": None}
    expected = pipe(
        prompt_embeds=lambda i, steps: first if i <= 3 else second, **plain
    ).latents  # steps 3, 4 and 5 of 0 to 5 run
    assert np.abs(edited - expected).max() <= SAME_LATENTS_ABS
    late = pipe("[a red:a blue:0.5] circle", **arguments).latents
    assert np.abs(late - pipe("a red circle", **plain).latents).max() <= SAME_LATENTS_ABS
    assert "would change after step 3 of 6, which is the last to run" in caplog.text


def test_step_numbers_by_hand() -> None:
    """Second order: two calls for each step but the last; PNDM: one call more.

    A run that goes on where another model ended counts the steps of that model as well.
    """
    for first, calls, expected in (
        (0, 7, [1, 1, 2, 2, 3, 3, 4]),
        (0, 5, [1, 1, 2, 3, 4]),
        (4, 7, [1, 1, 2]),
        (2, 4, [1, 2]),
    ):
        steps = StepRange(range(first, calls), calls, 4)
        assert [steps.number(i) for i in steps.calls] == expected
        assert steps.count == expected[-1]

    steps = StepRange(range(2, 4), 4, 4, continues=True)
    assert [steps.number(i) for i in steps.calls] == [3, 4] and steps.count == 4


def test_callbacks_cannot_ask_for_embeddings_that_change(pipe: Pipeline) -> None:
    def double(call: Any, step: int, timestep: float, arrays: dict[str, Any]) -> dict[str, Any]:
        return {"latents": arrays["latents"] * 2} if step == 0 else {}

    plain, changed = (
        pipe("[a|b] AND c", callback_on_step_end=function, **A1111).latents
        for function in (None, double)
    )
    assert np.abs(plain - changed).max() > 0.01
    with pytest.raises(InvalidArgumentError, match="no array 'prompt_embeds' in this call"):
        pipe(
            "[a|b]",
            callback_on_step_end=double,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
            **A1111,
        )


def test_each_text_is_encoded_once(package: Path, pipe: Pipeline) -> None:
    encoder = Counting(pipe.session("text_encoder"))
    sessions: dict[str, Any] = {n: pipe.session(n) for n in ("unet", "vae_decoder")}
    counted = Pipeline(
        Package.load(package, verify=False), sessions=sessions | {"text_encoder": encoder}
    )
    counted(["[one|two] AND one", "[two:one:3]"], **A1111 | {"seed": [0, 1]})
    assert len(encoder.batches) == 3  # "", "one", "two"; a space before a word changes nothing


def test_tags_are_left_out_and_named(pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    plain = pipe("a red circle", **FAST).latents
    for style in ("automatic1111", "comfyui"):
        caplog.clear()
        tagged = pipe(
            "a red circle<lora:x:0.8>", "<hypernet:y>", **FAST, prompt_style=style
        ).latents
        assert tagged.tobytes() == plain.tobytes()
        assert "<lora:x:0.8>, <hypernet:y> are not applied and left out" in caplog.text


def test_plain_style_warns_about_syntax(pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    pipe("a (red:1.3) circle AND a [blue|green] star <lora:x:1>", **FAST)
    (record,) = caplog.records
    assert "'<lora:x:1>' and 3 more are read as words" in record.message
    assert "--prompt-style automatic1111" in record.message
    caplog.clear()
    pipe("a red circle (large), [sic]", **FAST)
    assert not caplog.records


def test_embeddings_cannot_hold_a_prompt_that_changes(pipe: Pipeline) -> None:
    for prompt in ("[a|b]", "a AND b", "a:0.5"):
        with pytest.raises(InvalidArgumentError, match="cannot be combined with embeddings"):
            pipe.encode([prompt], prompt_style="a1111")
        with pytest.raises(InvalidArgumentError, match="embeddings of the other prompt"):
            pipe(prompt, negative_prompt_embeds=pipe.encode(["x"]), **A1111)
    pipe.encode(["a"], ["a AND b :2"], prompt_style="a1111")


@given(prompt=ANY_PROMPT, negative=ANY_PROMPT, style=st.sampled_from(STYLES), guided=st.booleans())
def test_any_prompt_has_finite_embeddings_in_every_step(
    pipe: Pipeline, prompt: str, negative: str, style: str, guided: bool
) -> None:
    """Or, in Compel's style, is rejected in one line."""
    encode = partial(pipe.text_encoders.encode, prompt_style=style)
    steps = StepRange(range(3), 3, 3)
    texts: list[Text] = [prompt]
    try:
        embeds, _ = prepare_prompts(
            encode, texts, [negative], EmbedArguments(), steps, style=style, guided=guided
        )
    except InvalidArgumentError as error:
        assert style == "compel" and "\n" not in str(error)
        return
    for i in range(3):
        rows = embeds(i, 3).embeds if isinstance(embeds, PromptConditions) else embeds
        assert all(np.isfinite(row).all() for row in rows)  # type: ignore[union-attr]


def test_composition_by_hand() -> None:
    uncond, a, b = np.float32([2.0]), np.float32([3.0]), np.float32([7.0])
    assert compose(uncond, [(1.0, a)]) is a
    # 2 + 1 * (3 - 2) + 0.5 * (7 - 2) = 5.5
    assert compose(uncond, [(1.0, a), (0.5, b)]).item() == 5.5
    # 0.25 * 3 + 0.75 * 7 = 6
    assert compose(None, [(0.25, a), (0.75, b)]).item() == 6.0


def test_embeddings_are_repeated_to_one_length() -> None:
    for lengths, expected in (
        ((154, 231), [462, 462]),
        ((77, 308), [308, 308]),
        ((77, 154, 231), [77, 154, 231]),  # 462 would be six times the shortest
    ):
        assert [len(e) for e in equal_lengths([np.zeros((n, 2)) for n in lengths])] == expected
