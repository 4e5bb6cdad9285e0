"""The verdicts of the safety checker compared with diffusers', and what a call does with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from sdexport import InvalidArgumentError, Package, PackageError, Pipeline, load_pipeline, verify
from sdexport.cli import main
from sdexport.runtime.images.clip_image import ClipImageProcessor
from sdexport.runtime.safety_checker import SafetyChecker
from tests.helpers.changed_package import accept_files
from tests.helpers.random_pictures import random_picture
from tests.helpers.safety_checkpoint import (
    CALL,
    SEED,
    SIDE,
    clip_input,
    cosines,
    make,
    random_checker,
)
from tests.helpers.shared import made_once
from tests.tolerances import COMPONENT_REL, assert_close


@pytest.fixture(scope="module")
def folder(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "safety", partial(make, package)) / "package"


@pytest.fixture(scope="module")
def checked(folder: Path) -> Iterator[Pipeline]:
    with load_pipeline(folder) as pipe:
        yield pipe


class _Cosines:
    """Stands for a safety checker's session."""

    def __init__(self, concepts: np.ndarray, special_care: np.ndarray) -> None:
        self.found = {"concept_cosines": concepts, "special_care_cosines": special_care}
        self.inputs: tuple[Any, ...] = ()
        self.outputs: tuple[Any, ...] = ()

    def run(self, feeds: Any) -> dict[str, np.ndarray]:
        return self.found


def test_verdicts_equal_diffusers() -> None:
    """For thresholds at, just below and just above every cosine, as float32 rounds them."""
    checker = random_checker()
    rng = np.random.default_rng(0)
    kinds = ("photograph", "shapes", "gradient", "noise", "flat")
    images = np.stack([random_picture(rng, kind, 48, 40) for kind in kinds])
    inputs = clip_input(checker, images)
    concepts, special_care = cosines(checker, images)
    ours = SafetyChecker.__new__(SafetyChecker)
    ours._session, ours._max_batch = lambda name: _Cosines(concepts, special_care), None
    ours._processor = ClipImageProcessor(size=SIDE, crop=(SIDE, SIDE))
    ours._check_shapes = lambda *arguments: None  # type: ignore[method-assign]
    offsets = [-0.011, -0.0105, -0.01, -0.0095, -0.0006, -0.0005, -0.0004, 0, 0.0005, 0.2, 0.9]
    seen = set()
    for _ in range(300):
        thresholds = {}
        for name, values in (("concept", concepts), ("special_care", special_care)):
            row = values[rng.integers(len(values))]
            picked = (row - rng.choice(offsets, row.shape)).astype(np.float32)
            picked += np.float32(rng.choice([0, 0, 0.3]))
            getattr(checker, f"{name}_embeds_weights").data = torch.from_numpy(picked)
            thresholds[f"{name}_cosines"] = picked
        ours._thresholds = thresholds
        _, expected = checker(clip_input=inputs, images=[np.ones((2, 2, 3)) for _ in images])
        actual = [bool(numbers) for numbers in ours.flagged_concepts(images)]
        assert actual == expected
        seen |= set(map(tuple, [actual]))
    assert len(seen) > 4


def test_call_blacks_out_what_is_flagged(
    checked: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    plain = checked(**CALL, seed=SEED)
    assert plain.nsfw_content_detected is None and not caplog.records
    result = checked(**CALL, seed=SEED, safety=True)
    flags = result.nsfw_content_detected
    assert flags is not None and len(flags) == len(plain.images) and 0 < sum(flags) < len(flags)
    for flagged, image, before in zip(flags, result.images, plain.images, strict=True):
        levels = np.asarray(image)
        assert not levels.any() if flagged else (levels == np.asarray(before)).all()
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == sum(flags) and "concept 5" in warnings[0]
    np.testing.assert_array_equal(result.latents, plain.latents)
    assert result.only(1).nsfw_content_detected == [flags[1]]


def test_arrays_tuples_and_parts_of_a_batch(folder: Path, checked: Pipeline) -> None:
    expected = checked(**CALL, seed=SEED, safety=True)
    arrays = checked(**CALL, seed=SEED, safety=True, output_type="np")
    assert arrays.nsfw_content_detected == expected.nsfw_content_detected
    for flagged, image in zip(expected.nsfw_content_detected or (), arrays.images, strict=True):
        assert (image.max() == 0) == flagged
    images, flags = checked(**CALL, seed=SEED, safety=True, return_dict=False)  # type: ignore
    assert flags == expected.nsfw_content_detected and len(images) == len(flags)
    with load_pipeline(folder, max_batch=1, low_memory=True, verify=False) as pipe:
        again = pipe(**CALL, seed=SEED, safety=True)
    assert again.nsfw_content_detected == expected.nsfw_content_detected


def test_settings_say_that_images_were_checked(checked: Pipeline) -> None:
    result = checked("a red circle", num_inference_steps=2, seed=0, safety=True)
    (parameters,) = result.parameters
    assert parameters.safety is True and "Safety: True" in str(parameters)
    assert parameters.arguments()["safety"] is True
    again = checked.like(result.images[0])
    assert again.nsfw_content_detected == result.nsfw_content_detected


def test_package_without_a_safety_checker(pipe: Pipeline) -> None:
    with pytest.raises(PackageError, match=r"holds no safety checker.*--no-safety-checker"):
        pipe("a red circle", safety=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"safety": 1}, "safety must be True or False"),
        ({"safety": True, "output_type": "latent"}, "safety needs pixels"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str, checked: Pipeline) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        checked("a red circle", **arguments)


def test_package_holds_the_checker_and_its_reference_outputs(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = Package.load(folder)
    record = package.manifest.components["safety_checker"]
    assert [spec.name for spec in record.inputs] == ["clip_input"]
    assert record.inputs[0].shape == ("batch", 3, SIDE, SIDE)
    config = json.loads((folder / "safety_checker" / "config.json").read_text())
    assert len(config["concept_thresholds"]) == 17 and len(config["special_care_thresholds"]) == 3
    assert package.model_index["safety_checker"] == [None, None]
    checks = verify(folder)
    rows = {(check.name, check.output) for check in checks if check.passed}
    assert {("safety_checker", f"{n}_cosines") for n in ("concept", "special_care")} <= rows
    assert checks.passed and not caplog.records


def test_graph_equals_pytorch(folder: Path, checked: Pipeline) -> None:
    checker = random_checker()  # the same weights
    images = np.stack([random_picture(np.random.default_rng(n), "shapes", 64, 80) for n in (1, 2)])
    values = clip_input(checker, images)
    found = checked.session("safety_checker").run({"clip_input": values.numpy()})
    for name, expected in zip(("concept", "special_care"), cosines(checker, images), strict=True):
        assert_close(found[f"{name}_cosines"], expected, rel=COMPONENT_REL)


def _without(key: str) -> Any:
    return lambda values: values.pop(key)


DAMAGES: dict[str, tuple[str, Any, str]] = {
    "no thresholds": ("config", _without("concept_thresholds"), "no 'concept_thresholds'"),
    "NaN": ("config", lambda v: v["concept_thresholds"].__setitem__(0, "nan"), "finite numbers"),
    "fewer": ("config", lambda v: v["special_care_thresholds"].pop(), "in the graph, and"),
    "text": ("config", lambda v: v.update(concept_thresholds="abc"), "config.json is damaged"),
    "size": ("preprocessor_config", lambda v: v.update(crop_size=24), "in the graph, and"),
    "kind": ("preprocessor_config", lambda v: v.update(do_pad=True), "do_pad is not supported"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_configurations_are_one_line(damage: str, folder: Path, tmp_path: Path) -> None:
    name, change, message = DAMAGES[damage]
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "safety_checker" / f"{name}.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    accept_files(copy, f"safety_checker/{name}.json")
    with load_pipeline(copy) as pipe, pytest.raises(PackageError, match=message) as caught:
        pipe("a red circle", num_inference_steps=1, seed=0, safety=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "missing", ["safety_checker/config.json", "safety_checker/preprocessor_config.json"]
)
def test_missing_configurations_are_named(missing: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / missing).unlink()
    with pytest.raises(PackageError, match=f"incomplete: {missing} is missing"):
        Package.load(copy)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_export_says_that_the_checker_is_off_by_default(folder: Path) -> None:
    lines = (folder.parent / "printed.txt").read_text(encoding="utf-8").splitlines()
    assert "safety_checker" in lines[0]
    assert "off by default: 'sdexport generate --safety'" in lines[1]
    inspected = call("inspect", folder).stdout
    assert "safety_checker: fp32, opset" in inspected and "<- clip_input: float32" in inspected
    assert "concept_cosines compared with PyTorch" in inspected


def test_command_line(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(CALL["prompt"]), encoding="utf-8")
    base = ["generate", folder, "--prompts", prompts, "-o", tmp_path / "{index}.png", "--steps", 4]
    result = call(*base, "--guidance", 5, "--seed", SEED, "--safety", "--json")
    assert result.exit_code == 0, result.output
    images = json.loads(result.stdout)["images"]
    assert all(image["safety"] is True for image in images)
    for image in images:
        with Image.open(image["path"]) as written:
            black = not np.asarray(written).any()
        assert image["nsfw_content_detected"] is black
    assert "the image is black: the safety checker found" in caplog.text
    flagged = sum(image["nsfw_content_detected"] for image in images)
    again = call(*base, "--guidance", 5, "--seed", SEED, "--safety", "--force")
    assert again.stdout.count(", black: flagged by the safety checker)") == flagged > 0
    plain = call(*base, "--seed", SEED, "--json", "--force")
    assert "nsfw_content_detected" not in json.loads(plain.stdout)["images"][0]


def test_command_line_without_a_checker(package: Path, tmp_path: Path) -> None:
    result = call("generate", package, "a red circle", "-o", tmp_path / "a.png", "--safety")
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 1 and "holds no safety checker" in line
    assert not (tmp_path / "a.png").exists()


def test_nothing_is_opened_that_is_not_asked_for(folder: Path) -> None:
    with load_pipeline(folder, verify=False) as pipe:
        pipe("a red circle", num_inference_steps=1, seed=0)
        assert "safety_checker" not in pipe._components._opened
