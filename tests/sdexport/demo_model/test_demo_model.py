"""The demo model: its data, how images are judged, what it generates, and `sdexport demo`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from sdexport import Pipeline
from sdexport.cli import main
from sdexport.demo_model import (
    CONTROLNET_PACKAGE_DIR,
    LORA_DIR,
    MODEL_DIR,
    PACKAGE_DIR,
    dataset,
    demo_run,
    judge,
    styles,
)
from sdexport.demo_model import evaluate as evaluation
from sdexport.demo_model.demo_run import contact_sheet
from sdexport.demo_model.evaluate_adapters import FULL, overlaps
from tests.tolerances import COVERAGE_REL, FEW_CASES_OVERLAP

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


def test_judge_recognises_every_scene() -> None:
    rng = np.random.default_rng(1)
    for single in dataset.all_singles(held_out=True)[::4]:
        image = dataset.render(dataset.place_single(single, rng))
        assert all(judge.judge_single(image, single).values()), single
    for held_out in (False, True) * 10:
        pair = dataset.random_pair(rng, held_out=held_out)
        image = dataset.render(dataset.place_pair(pair, rng))
        assert all(judge.judge_pair(image, pair).values()), pair


def test_judge_detects_each_wrong_attribute() -> None:
    """Each attribute by itself, noise, and an image without objects."""
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


def test_judge_detects_swapped_pairs() -> None:
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
def test_model_follows_held_out_prompts(pipe: Pipeline, scheduler: str) -> None:
    """A small sample of the evaluation; its bound allows for the spread of 48 prompts."""
    shares = evaluation.evaluate(pipe, evaluation.held_out_singles(48), scheduler)
    assert shares["all"] >= 0.85, shares


def test_contact_sheet_shows_every_image(pipe: Pipeline) -> None:
    result = pipe("a star", seed=0, num_inference_steps=1, num_images_per_prompt=5)
    sheet = contact_sheet(result.images, ["a long caption of many words"] * 5)
    assert sheet.width == 4 * 136 + 8 and sheet.height == 2 * 180 + 8
    assert sheet.crop((8, 8, 136, 136)).tobytes() == result.images[0].tobytes()


def test_demo_command_verifies_and_generates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo"
    done = CliRunner().invoke(main, ["demo", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["passed"] and set(report["seconds"]) == {"package", "verify", "generate"}
    written = {name: f"{folder}/{name}" for name in ("package", "controlnet", "loras")}
    written["sheet"] = f"{folder}/sheet.png"
    assert written.items() <= report.items()
    assert sorted(map(str, folder.iterdir())) == sorted(written.values())
    for name, source in (
        ("package", PACKAGE_DIR),
        ("controlnet", CONTROLNET_PACKAGE_DIR),
        ("loras", LORA_DIR),
    ):
        assert contents(folder / name) == contents(source)
    with Image.open(report["sheet"]) as sheet:
        check_adapters_on_sheet(sheet)

    again = CliRunner().invoke(main, ["demo", str(folder)])
    assert again.exit_code == 1
    assert again.stderr == f"error: {report['sheet']} exists; use --force to replace it\n"
    calls: list[tuple[object, ...]] = []
    command = sys.modules["sdexport.commands.demo"]
    monkeypatch.setattr(command, "run_export", lambda *args, **kw: calls.append((*args, kw)))
    forced = CliRunner().invoke(main, ["demo", str(folder), "--from-checkpoint", "--force"])
    assert forced.exit_code == 0, forced.output
    arguments = {"force": True, "lora_inputs": True, "controlnet_inputs": True}
    assert calls == [(MODEL_DIR, folder / "package", arguments)]
    assert forced.stdout.splitlines()[-1] == f"sheet:      {folder}/sheet.png"


def contents(folder: Path) -> dict[Path, bytes]:
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def check_adapters_on_sheet(sheet: Image.Image) -> None:
    """The last row: outlines, and images that follow them, without a LoRA and with each."""
    assert sheet.size == (4 * 136 + 8, 5 * 180 + 8)
    cells = [
        np.asarray(sheet.crop((8 + 136 * x, 728, 136 * (x + 1), 856)).convert("RGB"))
        for x in range(4)
    ]
    scene = demo_run.OUTLINED
    np.testing.assert_array_equal(cells[0], dataset.render_outlines(scene))
    for cell in cells[1:]:
        assert np.mean(overlaps(cell, scene)) >= FEW_CASES_OVERLAP
    for cell, style in zip(cells[2:], demo_run.CONTROLLED_LORA_SCALES, strict=True):
        amounts = [styles.style_amount(each, scene, style) for each in (cells[1], cell)]
        assert amounts[0] < FULL <= amounts[1], style


def test_demo_does_not_replace_loras(tmp_path: Path) -> None:
    loras = tmp_path / "loras"
    loras.mkdir()
    (loras / "soft.safetensors").write_text("mine")
    done = CliRunner().invoke(main, ["demo", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr == f"error: {loras}/soft.safetensors exists; use --force to replace it\n"
    assert (loras / "soft.safetensors").read_text() == "mine"


def test_demo_from_checkpoint_needs_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_run, "MODEL_DIR", tmp_path / "model")
    done = CliRunner().invoke(main, ["demo", str(tmp_path / "demo"), "--from-checkpoint"])
    assert done.exit_code == 1 and "model does not exist: the checkpoint is in the" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_package_is_not_replaced_by_half_a_copy(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "package"
    old.mkdir()
    (old / "sdexport.json").write_text("{}")

    def fail(source: Path, destination: Path) -> None:
        raise OSError(28, "No space left on device", str(destination))

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(OSError, match="No space left on device"):
        demo_run.copy_package(package, old, force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["package"]
    assert (old / "sdexport.json").read_text() == "{}"
