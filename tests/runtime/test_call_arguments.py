"""Arguments of diffusers' call: seeds, generators, outputs, callbacks, and what is rejected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sdexport import Pipeline, TorchGenerator
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.call_arguments import NOT_TAKEN
from sdexport.runtime.pipeline import call_argument_names

FAST: dict[str, Any] = {"num_inference_steps": 2, "scheduler": "euler_a", "width": 64, "height": 64}


@pytest.mark.parametrize("seed", [-1, [-1], np.int64(-1), np.array(-1), np.array([-1])])
def test_field_case_r7_seed_of_minus_one_is_random(pipe: Pipeline, seed: Any) -> None:
    a, b = (pipe("a star", seed=seed, **FAST) for _ in range(2))
    assert a.parameters[0].seed != b.parameters[0].seed
    again = pipe("a star", seed=a.parameters[0].seed, **FAST)
    assert again.images[0].tobytes() == a.images[0].tobytes() != b.images[0].tobytes()


def test_seed_of_minus_one_within_a_list(pipe: Pipeline) -> None:
    found = pipe(["a star"] * 3, seed=[4, -1, -1], **FAST).parameters
    assert found[0].seed == 4
    assert len({p.seed for p in found}) == 3 and all(p.seed < 2**32 for p in found)


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_arguments_of_other_programs_are_rejected_by_name(pipe: Pipeline, name: str) -> None:
    assert name not in call_argument_names()
    with pytest.raises(InvalidArgumentError, match=f"no argument {name}: ") as caught:
        pipe("a star", **{name: 1})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_arguments_of_other_programs_may_be_none(pipe: Pipeline) -> None:
    """Code for diffusers passes what it does not use as None."""
    unused: dict[str, Any] = dict.fromkeys(NOT_TAKEN)
    assert pipe("a star", seed=1, **FAST, **unused).images
    with pytest.raises(InvalidArgumentError, match="did you mean num_inference_steps"):
        pipe("a star", num_inference_step=None)  # type: ignore[arg-type]


def test_size_conditioning_that_the_model_lacks_is_named(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    pipe("a star", seed=1, crops_coords_top_left=(0, 0), aesthetic_score=6.0, **FAST)
    assert "no effect" not in caplog.text
    pipe("a star", seed=1, original_size=(64, 64), aesthetic_score=5.0, **FAST)
    assert "original_size, aesthetic_score: no effect" in caplog.text


def test_numpy_integers_are_integers(pipe: Pipeline) -> None:
    fast = {**FAST, "scheduler": "dpmsolver++", "seed": 1}
    order = {"solver_order": 3}
    python = pipe("a star", scheduler_options=order, **fast)
    fast["num_inference_steps"] = np.int32(2)
    found = pipe("a star", scheduler_options={"solver_order": np.int64(3)}, **fast)
    assert found.parameters == python.parameters
    assert found.images[0].tobytes() == python.images[0].tobytes()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("num_inference_step", "num_inference_steps"),
        ("negativ_prompt", "negative_prompt"),
        ("guidancescale", "guidance_scale"),
        ("Seed", "seed"),
        ("generators", "generator"),
        ("img", "image"),
        ("qqq", None),
    ],
)
def test_misspelt_arguments_suggest_the_nearest(
    pipe: Pipeline, wrong: str, right: str | None
) -> None:
    message = f"did you mean {right}" if right else "it takes prompt, "
    with pytest.raises(InvalidArgumentError, match=message):
        pipe("a star", **{wrong: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator": 5}, r"generator: expected sdexport.TorchGenerator\(seed\)"),
        ({"generator": [TorchGenerator(1)] * 2}, "got 2 generators for 1 images"),
        ({"generator": []}, "got 0 generators for 1 images"),
        ({"generator": TorchGenerator(1), "seed": 1}, "either a seed or a generator"),
        ({"generator": TorchGenerator(1), "noise_device": "cuda"}, "contradicts the generator"),
        ({"output_type": "pt"}, r"unknown output_type 'pt'; there is no torch; take 'np'"),
        ({"output_type": "jpeg"}, "unknown output_type 'jpeg'; choose one of pil, np, latent"),
        ({"output_type": ["np"]}, "unknown output_type"),
        ({"return_dict": None}, "return_dict must be True or False"),
        ({"callback_on_step_end": 5}, "callback_on_step_end must be a function"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["noise"]},
            "no array 'noise' in this call; it has latents, prompt_embeds, negative_prompt_embeds",
        ),
        ({"callback_on_step_end_tensor_inputs": 5}, "must be a string or a list of strings"),
        ({"callback_on_step_end": lambda *_: 5}, "must return a dict of arrays or None, got 5"),
        ({"callback_on_step_end": lambda *_: {"x": 1}}, "no array 'x' in this call"),
        ({"callback_on_step_end": lambda *_: {"latents": "x"}}, "latents: expected float32"),
        (
            {"callback_on_step_end": lambda *_: {"latents": np.zeros((1, 4, 8, 9))}},
            r"latents: expected float32 \(1, 4, 8, 8\)",
        ),
        (
            {"callback_on_step_end": lambda *_: {"latents": np.full((1, 4, 8, 8), np.nan)}},
            "latents: contains NaN or infinity",
        ),
        (
            {"callback_on_step_end": lambda *_: {"prompt_embeds": np.zeros((3, 77, 96))}},
            "prompt_embeds: expected 2 rows at guidance_scale 7.5, got 3",
        ),
        ({"prompt_2": np.zeros(2)}, "prompt_2 needs"),
        ({"negative_prompt_2": "a circle"}, "negative_prompt_2 needs a negative_prompt"),
        ({"prompt_2": "a circle"}, "prompt_2 needs a package with two text encoders"),
        ({"denoising_end": 0.0}, "denoising_end 0 leaves no step to run"),
        ({"denoising_end": 1.5}, "denoising_end must be 0 to 1"),
        ({"denoising_start": 0.5}, "denoising_start needs an image"),
        ({"original_inference_steps": 20}, "has no original_inference_steps; only lcm and tcd do"),
        ({"image": np.zeros((1, 4, 8, 9), np.float32)}, "width must be 72, that of the latents"),
        ({"image": np.zeros((2, 4, 8, 8), np.float32)}, "got 2 input images to generate 1 images"),
        ({"image": [np.zeros((1, 4, 8, 8))]}, "image: expected float32"),
        ({"image": np.zeros((1, 4, 9999, 1), np.float32)}, "sides are at most 16384"),
        ({"image": np.full((1, 4, 8, 8), np.nan, np.float32)}, "image: contains NaN or infinity"),
    ],
)
def test_call_rejects(pipe: Pipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        pipe("a star", **{**FAST, **arguments})
    assert "\n" not in str(caught.value)


def test_interrupt_decodes_what_there_is(pipe: Pipeline) -> None:
    seen: list[int] = []

    def callback(call: Any, i: int, timestep: float, arrays: dict[str, Any]) -> dict[str, Any]:
        seen.append(i)
        assert call.interrupt is False
        assert call.tokenizer is pipe.tokenizer  # of the pipeline
        call.interrupt = i == 1
        with pytest.raises(AttributeError, match="guidance"):
            call._guidance_rescale = 0.5  # has no effect here
        return arrays

    steps: list[Any] = []
    result = pipe(
        "a star",
        seed=1,
        callback_on_step_end=callback,
        on_step=steps.append,
        **FAST | {"num_inference_steps": 5},
    )
    assert seen == [0, 1] and len(steps) == 2
    np.testing.assert_array_equal(result.latents, steps[-1].latents)


def test_changed_negative_prompt_embeds_warn(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    def callback(call: Any, i: int, timestep: float, arrays: dict[str, Any]) -> dict[str, Any]:
        return {"negative_prompt_embeds": arrays["negative_prompt_embeds"] * 0}

    names = ["negative_prompt_embeds"]
    changed = pipe(
        *("a star", "grey"),
        seed=1,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
        **FAST,
    )
    assert "negative_prompt_embeds have no effect in the loop" in caplog.text
    plain = pipe("a star", "grey", seed=1, **FAST)
    np.testing.assert_array_equal(changed.latents, plain.latents)


def test_repr_of_result_and_pipeline_is_one_helpful_line(pipe: Pipeline) -> None:
    result = pipe("a star", seed=[3, 4], num_images_per_prompt=2, **FAST)
    text = repr(result)
    assert text.startswith("<Result: 2 images of 64x64, seeds 3, 4, 2 steps, ")
    assert "\n" not in text and len(text) < 100
    assert "1 image of 64x64, seed 3, " in repr(pipe("a star", seed=3, **FAST))
