"""The embedded model: its data, its judge, and what it paints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdexport import Pipeline
from sdexport.demo_model import MODEL_DIR, dataset, judge
from sdexport.demo_model import evaluate as evaluation
from sdexport.demo_model.demo_run import contact_sheet
from tests.tolerances import COVERAGE_REL

LARGEST = 12_000_000


def test_model_is_small_and_whole() -> None:
    weights = list(MODEL_DIR.rglob("*.safetensors"))
    assert len(weights) == 3
    assert sum(f.stat().st_size for f in weights) <= LARGEST


def test_split_holds_out_whole_combinations() -> None:
    inside, outside = (set(dataset.all_singles(held_out=h)) for h in (False, True))
    assert not inside & outside and len(inside | outside) == 2 * 8 * 4 * 7
    rng = np.random.default_rng(0)
    captions = {dataset.sample_scene(rng)[1] for _ in range(3000)}
    forbidden = {
        dataset.single_caption(s, w) for s in outside for w in range(len(dataset.SINGLE_WORDINGS))
    }
    assert not captions & forbidden
    for single in outside:
        pair_seen = {(s.colour, s.shape) for s in inside} | {(s.size, s.background) for s in inside}
        assert (single.colour, single.shape) in pair_seen


def test_scenes_depend_on_the_seed_alone() -> None:
    a, b = (dataset.sample_scene(np.random.default_rng([0, 3])) for _ in range(2))
    assert a == b
    np.testing.assert_array_equal(dataset.render(a[0]), dataset.render(b[0]))


def test_render_is_anti_aliased() -> None:
    circle = dataset.Shape("circle", (0, 0, 0), 63.3, 64.6, 30)
    assert dataset.coverage(circle).sum() == pytest.approx(np.pi * 30**2, rel=COVERAGE_REL)
    assert len(np.unique(dataset.coverage(circle))) > 20


def test_judge_sees_what_was_drawn() -> None:
    rng = np.random.default_rng(1)
    for single in dataset.all_singles(held_out=True)[::4]:
        picture = dataset.render(dataset.place_single(single, rng))
        assert all(judge.judge_single(picture, single).values()), single
    for held_out in (False, True) * 10:
        pair = dataset.random_pair(rng, held_out=held_out)
        picture = dataset.render(dataset.place_pair(pair, rng))
        assert all(judge.judge_pair(picture, pair).values()), pair


def test_judge_sees_what_is_wrong() -> None:
    """Each attribute by itself, and pictures of nothing."""
    rng = np.random.default_rng(2)
    wanted = dataset.Single("small", "red", "circle", "blue")
    for name, value in (
        ("size", "large"),
        ("colour", "orange"),
        ("shape", "square"),
        ("background", "purple"),
    ):
        other = dataset.Single(**(vars(wanted) | {name: value}))
        verdict = judge.judge_single(dataset.render(dataset.place_single(other, rng)), wanted)
        assert verdict == {key: key != name for key in verdict}
    noise = rng.integers(0, 256, (128, 128, 3)).astype(np.uint8)
    flat = np.full((128, 128, 3), dataset.COLOURS["blue"], np.uint8)
    assert not judge.judge_single(noise, wanted)["shape"]
    assert judge.judge_single(flat, wanted) == {
        "colour": False,
        "background": True,
        "shape": False,
        "size": False,
    }


def test_judge_sees_swapped_pairs() -> None:
    rng = np.random.default_rng(3)
    pair = dataset.Pair(("red", "circle"), "above", ("blue", "square"), "white")
    swapped = dataset.Pair(pair.second, "above", pair.first, "white")
    verdict = judge.judge_pair(dataset.render(dataset.place_pair(swapped, rng)), pair)
    assert verdict == {"background": True, "objects": True, "relation": False}


def test_prompts_of_the_evaluation_are_held_out() -> None:
    singles = evaluation.held_out_singles(evaluation.SINGLES)
    assert len(singles) >= 256 and len({prompt for prompt, _ in singles}) == len(singles)
    outside = set(dataset.all_singles(held_out=True))
    assert all(wanted in outside for _, wanted in singles)
    pairs = [wanted for _, wanted in evaluation.held_out_pairs(64)]
    assert all(isinstance(p, dataset.Pair) and dataset.pair_is_held_out(p) for p in pairs)


@pytest.mark.parametrize("scheduler", ["lms", "ddim"])
def test_model_paints_held_out_prompts(pipe: Pipeline, scheduler: str) -> None:
    """A quick sample of the evaluation, judged by its own bounds less what 48 prompts blur."""
    shares = evaluation.evaluate(pipe, evaluation.held_out_singles(48), scheduler)
    assert shares["all"] >= 0.85, shares


def test_contact_sheet_holds_every_picture(pipe: Pipeline) -> None:
    result = pipe("a star", seed=0, num_inference_steps=1, num_images_per_prompt=5)
    sheet = contact_sheet(result.images, ["a long caption of many words"] * 5)
    assert sheet.width == 4 * 136 + 8 and sheet.height == 2 * 180 + 8
    assert sheet.crop((8, 8, 136, 136)).tobytes() == result.images[0].tobytes()


def test_demo_runs_and_does_not_overwrite(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from sdexport.demo_model.demo_run import run

    report = run(tmp_path / "demo", lambda s, d, force: shutil.copytree(package, d), force=False)
    assert report["passed"] and set(report["seconds"]) == {"export", "verify", "paint"}
    assert Path(report["sheet"]).is_file()
    with pytest.raises(FileExistsError, match="give --force"):
        run(tmp_path / "demo", lambda s, d, force: None, force=False)
