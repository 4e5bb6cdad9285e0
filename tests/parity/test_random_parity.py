"""Random pipeline calls against diffusers, over small random checkpoints of seven families.

Each number is always the same call: `pytest -k "random_call and [17]"` runs call 17 again, and the
message of a failure shows the call. Calls that diffusers rejects must be rejected here too, and the
other way round, except for what is listed below. Not among the random calls, as the right images
are other ones there (see also test_image_parity.py):

- negative sizes in text to image of several images: diffusers repeats the rows of negative and
  positive sizes as n p n p and not n n p p, so that half of the images get the wrong ones;
- a list of generators for one image in inpainting; several images with num_images_per_prompt;
- EDM schedulers, which need models of their own, and samplers that diffusers does not have;
- inverse schedulers, which go from an image to noise; diffusers' pipelines of these tasks would run
  them from noise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.families import build
from tests.helpers.family_pipelines import Both
from tests.helpers.random_calls import TASKS_OF, random_call
from tests.helpers.random_parity import compare_call
from tests.helpers.shared import made_once

QUICK, ALL = 60, 560
WE_REJECT = {
    "leaves no step to run": "diffusers decodes latents that no step has denoised",
}
"""Part of our message -> why we reject what diffusers runs."""
DIFFUSERS_REJECTS = {
    "must match the size of tensor b (0)": (
        "Heun with timesteps: diffusers counts calls of the UNet as steps, so that a strength "
        "leaves none"
    ),
    "cannot reshape tensor of 0 elements": "the same, with guidance",
    "'IPNDMScheduler' object has no attribute 'add_noise'": (
        "diffusers starts IPNDM from noise only; images get noise by its own levels"
    ),
}
"""Part of diffusers' message -> why we run what diffusers rejects."""


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Both]:
    @cache
    def of(family: str) -> Both:
        folder = made_once(tmp_path_factory, f"random-{family}", lambda path: _build(family, path))
        return Both(folder)

    return of


def _build(family: str, folder: Path) -> None:
    folder.mkdir()
    build(family, folder)


def numbers() -> list[object]:
    slow = (pytest.param(n, marks=pytest.mark.slow) for n in range(QUICK, ALL))
    return [*range(QUICK), *slow]


@pytest.mark.parametrize("number", numbers())
def test_random_call_equals_diffusers(number: int, pipelines: Callable[[str], Both]) -> None:
    call = random_call(number)
    outcome = compare_call(pipelines(call.family), call)
    if outcome.kind == "we reject":
        assert any(part in outcome.message for part in WE_REJECT), str(outcome)
    elif outcome.kind == "diffusers rejects":
        assert any(part in outcome.message for part in DIFFUSERS_REJECTS), str(outcome)
    else:
        assert not outcome.is_failure, str(outcome)


def test_random_calls_cover_everything() -> None:
    """The quick calls include every family, task and kind of argument."""
    calls = [random_call(number) for number in range(QUICK)]
    assert {(call.family, call.task) for call in calls} == {
        (family, task) for family, tasks in TASKS_OF.items() for task in tasks
    }
    names = {name for call in calls for name in call.arguments}
    assert names >= {"clip_skip", "denoising_start", "denoising_end", "prompt_2"}
    assert names >= {"original_inference_steps", "guidance_rescale", "num_images_per_prompt"}
    assert {call.callback[0] for call in calls if call.callback} == {
        *("latents", "unguided", "interrupt")
    }
    assert any(isinstance(call.seeds, list) for call in calls)
    assert str(random_call(3)) == str(random_call(3)) != str(random_call(3, seed=1))
