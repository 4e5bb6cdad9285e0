"""diffusers' call: generators, callbacks, output types, two text prompts, and models in a row."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from sdexport import TorchGenerator
from tests.helpers.families import build
from tests.helpers.family_pipelines import Both
from tests.helpers.random_calls import mask, picture
from tests.tolerances import CALL_LATENTS_REL, IMAGE_ABS, assert_close

PROMPTS = ["a red circle", "a small blue star on a green background"]
STEPS = {"num_inference_steps": 4, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Both]:
    @cache
    def of(family: str) -> Both:
        return Both(build(family, tmp_path_factory.mktemp("calls") / family))

    return of


def run_theirs(pipeline: Any, generator: Any, **arguments: Any) -> np.ndarray:
    """Images (B, H, W, 3) float32, or latents."""
    arguments = {"output_type": "np"} | arguments
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(pipeline(generator=generator, **arguments).images)


def assert_same(ours: np.ndarray, expected: np.ndarray) -> None:
    assert ours.shape == expected.shape
    assert ours.dtype == expected.dtype == np.float32
    difference = np.abs(np.rint(ours * 255) - np.rint(expected * 255)).max()
    assert difference <= IMAGE_ABS, f"{difference} of 255"


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("several", [False, True])
def test_generators_continue_their_streams(
    pipelines: Callable[[str], Both], several: bool, scheduler: str
) -> None:
    """Two calls with one generator are diffusers' two calls, with an image between them."""
    both = pipelines("sd1")
    theirs, image = both.theirs("text"), both.theirs("image")
    class_ = getattr(diffusers, scheduler)
    for each in (theirs, image):
        each.scheduler = class_.from_config(both.ours.package.scheduler_config)
    mine: Any = [TorchGenerator(7), TorchGenerator(2**40)] if several else TorchGenerator(7)
    other: Any = [torch.Generator().manual_seed(n) for n in (7, 2**40)]
    other = other if several else other[0]
    inputs = {"image": picture(1, 64, 72), "strength": 0.7}
    for pipeline, more in ((theirs, {}), (image, inputs), (theirs, {})):
        expected = run_theirs(pipeline, other, prompt=PROMPTS, **STEPS, **more)
        ours = both.ours(
            PROMPTS, generator=mine, scheduler=scheduler, output_type="np", **STEPS, **more
        )
        assert_same(ours.images, expected)
    first, second = (mine[0], other[0]) if several else (mine, other)
    np.testing.assert_array_equal(
        np.sign(first.randn((16,))), torch.randn(16, generator=second).sign().numpy()
    )


def test_seed_of_a_used_generator_is_not_recorded(pipelines: Callable[[str], Both]) -> None:
    pipe, generator = pipelines("sd1").ours, TorchGenerator(5)
    fresh = pipe("a star", generator=generator, **STEPS).parameters[0]
    used = pipe("a star", generator=generator, **STEPS).parameters[0]
    assert (fresh.seed, used.seed) == (5, None)
    assert "generator" not in fresh.external
    assert used.external["generator"].startswith("TorchGenerator")
    cuda = pipe("a star", generator=TorchGenerator(5, "cuda"), **STEPS).parameters[0]
    assert (cuda.seed, cuda.noise_device) == (5, "cuda")


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_output_types_and_tuples_are_those_of_diffusers(
    pipelines: Callable[[str], Both], family: str
) -> None:
    both = pipelines(family)
    theirs = both.theirs("text")
    arguments: dict[str, Any] = {"prompt": PROMPTS, **STEPS}
    latents = run_theirs(
        theirs, torch.Generator().manual_seed(3), output_type="latent", **arguments
    )
    ours = both.ours(seed=3, output_type="latent", **arguments)
    assert_close(ours.images, latents, rel=CALL_LATENTS_REL)
    assert ours.images is ours.latents
    images = run_theirs(theirs, torch.Generator().manual_seed(3), **arguments)
    for kind in ("pil", "np", "latent"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = theirs(
                generator=torch.Generator().manual_seed(3),
                output_type=kind,
                return_dict=False,
                **arguments,
            )
        actual = both.ours(seed=3, output_type=kind, return_dict=False, **arguments)
        assert isinstance(actual, tuple) and len(actual) == len(expected)  # type: ignore[unreachable]
        assert list(actual[1:]) == list(expected[1:])  # type: ignore[unreachable]
        if kind == "np":
            assert_same(actual[0], images)
        elif kind == "pil":
            pixels = np.stack([np.asarray(image) for image in actual[0]])
            assert np.abs(pixels - np.rint(images * 255)).max() <= IMAGE_ABS


@pytest.mark.parametrize(
    ("family", "class_"),
    [("sd1", "SDCFGCutoffCallback"), ("sdxl", "SDXLCFGCutoffCallback")],
)
def test_callbacks_of_diffusers_run_here(
    pipelines: Callable[[str], Both], family: str, class_: str
) -> None:
    """Guidance that ends after a share of the steps, by diffusers' own object."""
    from diffusers import callbacks

    both = pipelines(family)
    for settings in (
        {"cutoff_step_ratio": 0.4},
        {"cutoff_step_ratio": None, "cutoff_step_index": 1},
    ):
        callback = getattr(callbacks, class_)(**settings)
        arguments: dict[str, Any] = {
            "prompt": "a star",
            "num_inference_steps": 5,
            "guidance_scale": 7.0,
            "callback_on_step_end": callback,
        }
        expected = run_theirs(both.theirs("text"), torch.Generator().manual_seed(1), **arguments)
        ours = both.ours(seed=1, output_type="np", **arguments)
        assert_same(ours.images, expected)
        plain = both.ours(seed=1, output_type="np", **arguments | {"callback_on_step_end": None})
        assert not np.array_equal(plain.images, ours.images)


def test_callback_sees_and_changes_what_diffusers_passes(
    pipelines: Callable[[str], Both],
) -> None:
    """Latents, embeddings and mask at every step of inpainting, changed at two of them."""
    both = pipelines("inpainting")
    names = ["latents", "prompt_embeds", "negative_prompt_embeds", "mask", "masked_image_latents"]

    def recorder(seen: list[Any]) -> Callable[..., Any]:
        def callback(pipeline: Any, i: int, timestep: Any, arrays: dict[str, Any]) -> Any:
            seen.append((i, float(timestep), pipeline.guidance_scale, pipeline.num_timesteps))
            seen.append({name: np.array(array) for name, array in arrays.items()})
            if i == 0:
                arrays["prompt_embeds"] = arrays["prompt_embeds"] * 0.5
                arrays["mask"] = arrays["mask"] * 0 + 1
            if i == 1:
                arrays["latents"] += 0.25  # in place, and not returned
                return {"masked_image_latents": arrays["masked_image_latents"] * 0.9}
            return arrays

        return callback

    arguments: dict[str, Any] = {
        "prompt": PROMPTS,
        "negative_prompt": ["grey", ""],
        "image": picture(1, 64, 64),
        "mask_image": mask(2, 64, 64),
        "height": 64,
        "width": 64,
        "strength": 0.8,
        "callback_on_step_end_tensor_inputs": names,
        **STEPS,
    }
    their_steps: list[Any] = []
    our_steps: list[Any] = []
    expected = run_theirs(
        both.theirs("inpaint"),
        torch.Generator().manual_seed(1),
        callback_on_step_end=recorder(their_steps),
        **arguments,
    )
    ours = both.ours(
        seed=1, output_type="np", callback_on_step_end=recorder(our_steps), **arguments
    )
    assert_same(ours.images, expected)
    assert our_steps[::2] == their_steps[::2]
    for mine, theirs in zip(our_steps[1::2], their_steps[1::2], strict=True):
        assert mine.keys() == theirs.keys()
        for name, array in theirs.items():
            assert_close(mine[name], array, rel=CALL_LATENTS_REL)


def test_base_and_refiner_in_a_row_equal_diffusers(pipelines: Callable[[str], Both]) -> None:
    """denoising_end, latents as image, denoising_start; the generator goes on."""
    base, refiner = pipelines("sdxl"), pipelines("refiner")
    mine, other = TorchGenerator(4), torch.Generator().manual_seed(4)
    first: dict[str, Any] = {"prompt": PROMPTS, "prompt_2": "a star", "num_inference_steps": 8}
    first |= {"denoising_end": 0.6, "output_type": "latent", "height": 72, "width": 88}
    second: dict[str, Any] = {"prompt": PROMPTS, "num_inference_steps": 8, "denoising_start": 0.6}
    their_first = first | {"prompt_2": ["a star"] * 2}
    latents = run_theirs(base.theirs("text"), other, **their_first)
    expected = run_theirs(refiner.theirs("image"), other, image=torch.from_numpy(latents), **second)
    ours = base.ours(generator=mine, **first)
    assert_close(ours.images, latents, rel=CALL_LATENTS_REL)
    refined = refiner.ours(image=ours.images, generator=mine, output_type="np", **second)
    assert_same(refined.images, expected)
    assert refined.parameters[0].denoising_start == 0.6
    for given in (torch.from_numpy(ours.images), list(ours.images[:, None])):
        again = refiner.ours(image=given, seed=1, **second).latents  # type: ignore[arg-type]
        other_again = refiner.ours(image=ours.images, seed=1, **second).latents
        np.testing.assert_array_equal(again, other_again)


@pytest.mark.parametrize("family", ["sdxl", "lcm", "refiner"])
def test_new_arguments_are_recorded_and_read_back(
    pipelines: Callable[[str], Both], family: str
) -> None:
    pipe = pipelines(family).ours
    arguments: dict[str, Any] = {
        "sdxl": {
            "prompt": PROMPTS,
            "prompt_2": ["a star", "grey"],
            "negative_prompt": "grey",
            "negative_prompt_2": "blue",
            "negative_original_size": (99, 80),
            "negative_target_size": (90, 70),
            "negative_crops_coords_top_left": (4, 5),
            "denoising_end": 0.7,
        },
        "lcm": {"prompt": PROMPTS, "original_inference_steps": 20, "strength": 0.6},
        "refiner": {"prompt": PROMPTS, "denoising_start": 0.4, "denoising_end": 0.9},
    }[family]
    if family != "sdxl":
        arguments["image"] = picture(1, 64, 64)
    for noise in (
        {"generator": TorchGenerator(6)},
        {"generator": [TorchGenerator(6), TorchGenerator(7, "cpu")]},
        {"generator": TorchGenerator(2**40, "cuda")},
        {"seed": -1},
    ):
        result = pipe(num_inference_steps=5, **arguments, **noise)
        given = {"image": arguments["image"]} if "image" in arguments else {}
        for image, parameters in zip(result.images, result.parameters, strict=True):
            again = pipe.like(parameters, **given)
            assert again.images[0].tobytes() == image.tobytes()


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize(("steps", "original"), [(None, None), (2, 20), (6, 50), (3, 100)])
def test_field_case_r1_latent_consistency_image_to_image(
    pipelines: Callable[[str], Both], strength: float, steps: int | None, original: int | None
) -> None:
    """The strength shortens the schedule, and all of its steps are run."""
    both = pipelines("lcm")
    arguments: dict[str, Any] = {"prompt": "a star", "image": picture(3, 80, 64)}
    arguments |= {"strength": strength}
    if steps is not None:
        arguments |= {"num_inference_steps": steps, "original_inference_steps": original}
    expected = run_theirs(both.theirs("image"), torch.Generator().manual_seed(2), **arguments)
    timesteps: list[float] = []
    ours = both.ours(
        seed=2,
        output_type="np",
        on_step=lambda step: timesteps.append(step.timestep),
        **arguments,
    )
    assert_same(ours.images, expected)
    assert len(timesteps) == (steps or 4)
    if steps is None and strength == 0.8:
        assert timesteps == [799, 599, 399, 199]
    assert ours.parameters[0].strength == strength


@pytest.mark.parametrize("scheduler", ["dpm2", "dpm2_a", "heun", "dpmsolver_sde"])
@pytest.mark.parametrize("strength", [0.5, 0.75, 0.999, 1.0])
def test_field_case_r11_inpainting_with_two_evaluations(
    pipelines: Callable[[str], Both], scheduler: str, strength: float
) -> None:
    """Three images from one seed; outside the mask diffusers adds the noise of the next step."""
    from tests.helpers.diffusers_schedulers import brownian_from, twin_class

    both = pipelines("sd1")
    theirs = both.theirs("inpaint")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.scheduler = twin_class(scheduler).from_config(both.ours.package.scheduler_config)
    arguments: dict[str, Any] = {
        "prompt": "a star",
        "image": picture(5, 100, 90),
        "mask_image": mask(6, 100, 90),
        "height": 72,
        "width": 88,
        "strength": strength,
        "num_inference_steps": 5,
        "num_images_per_prompt": 3,
    }
    generator = torch.Generator().manual_seed(9)
    with brownian_from(scheduler, generator):
        expected = run_theirs(theirs, generator, **arguments)
    ours = both.ours(seed=9, scheduler=scheduler, output_type="np", **arguments)
    assert_same(ours.images, expected)
