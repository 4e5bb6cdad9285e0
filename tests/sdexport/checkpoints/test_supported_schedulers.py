"""Field case C8: schedulers and keys of configurations are used, warned about, or rejected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest

from sdexport.checkpoints.sources import Options, open_source
from sdexport.checkpoints.supported_schedulers import supported_scheduler
from sdexport.engines.errors import CheckpointError
from sdexport.runtime.schedulers import canonical_name
from tests.helpers.diffusers_images import assert_same_images, generate_with_diffusers
from tests.helpers.family_pipelines import Both
from tests.helpers.file_kinds import file_kind
from tests.helpers.linked_folder import linked_folder

SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return linked_folder(checkpoint, tmp_path / "checkpoint")


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    config = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    path.write_text(json.dumps({**config, **values}), encoding="utf-8")


def with_scheduler(folder: Path, class_name: str, **values: Any) -> Path:
    change(folder, SCHEDULER, _class_name=class_name, **values)
    change(folder, "model_index.json", scheduler=["diffusers", class_name])
    return folder


@file_kind(
    "checkpoint",
    "scheduler of another kind of model",
    recognised="`FlowMatch*Scheduler`, consistency models, `KarrasVeScheduler` and others",
    result="rejected",
    says="so no other one can take its place",
)
@pytest.mark.parametrize(
    "name",
    [
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "CMStochasticIterativeScheduler",
        "KarrasVeScheduler",
        "ScoreSdeVeScheduler",
        "CogVideoXDDIMScheduler",
        "VQDiffusionScheduler",
        "SCMScheduler",
        "FlowFromTheFutureScheduler",
        "EDMFromTheFutureScheduler",
    ],
)
def test_c8_other_parametrisations(name: str, says: str, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=f"the scheduler {name} is not supported.*{says}"):
        open_source(with_scheduler(folder, name))


@file_kind(
    "checkpoint",
    "unknown scheduler",
    recognised="`_class_name` of `scheduler_config.json`",
    result="exported with DDIM, with a warning",
    says="images are generated with DDIMScheduler instead",
)
@pytest.mark.parametrize("name", ["MyScheduler", "RePaintScheduler", ""])
@pytest.mark.parametrize("options", [None, Options(timestep_spacing="trailing")])
def test_c8_unknown_scheduler_is_replaced_with_one_warning(
    name: str,
    options: Options | None,
    says: str,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = open_source(with_scheduler(folder, name), options=options)
    assert opened.scheduler_config["_class_name"] == name
    (record,) = caplog.records
    assert says in record.getMessage() and (name or "is not named") in record.getMessage()
    assert "--scheduler" in record.getMessage() and str(folder) in record.getMessage()


OTHER_TIME = ("EDM", "IPNDM")
"""Known classes that do not fit every model: rejected for this UNet, or warned about."""


def test_c8_every_scheduler_of_diffusers(caplog: pytest.LogCaptureFixture) -> None:
    """Known, rejected, or replaced with a warning; never replaced without one."""
    names = [n for n in dir(diffusers) if n.endswith("Scheduler") and n[0].isupper()]
    outcomes: dict[str, int] = {}
    for name in names:
        caplog.clear()
        known = canonical_name(name) is not None and not name.startswith(OTHER_TIME)
        try:
            index = {"scheduler": ["diffusers", name]}
            supported_scheduler(Path("folder"), index, {"_class_name": name}, warns=True)
            outcome = "warned" if caplog.records else "known"
        except CheckpointError as error:
            assert "\n" not in str(error)
            outcome = "rejected"
        assert (outcome == "known") == known or name.startswith("EDM"), (name, outcome)
        assert outcome != "known" or name != "IPNDMScheduler"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes["known"] >= 15 and outcomes["rejected"] >= 10


def test_c8_class_of_the_index_comes_first(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """diffusers makes the scheduler that model_index.json names."""
    change(folder, "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    change(folder, SCHEDULER, _class_name="PNDMScheduler")
    opened = open_source(folder)
    assert opened.scheduler_config["_class_name"] == "EulerDiscreteScheduler"
    assert "names the scheduler EulerDiscreteScheduler, scheduler_config.json PNDM" in caplog.text
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"


@file_kind(
    "checkpoint",
    "configuration of 2022",
    recognised="an SD 1 or 2 scheduler without `steps_offset`, `clip_sample` or `skip_prk_steps`",
    result="exported with the values that diffusers' pipeline sets",
)
@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
def test_c8_outdated_configuration(name: str, checkpoint: Path, tmp_path: Path) -> None:
    """diffusers' pipelines update it when they load it; images are those of the pipeline."""
    folder = with_scheduler(shutil.copytree(checkpoint, tmp_path / "checkpoint"), name)
    config = json.loads((folder / SCHEDULER).read_text(encoding="utf-8"))
    for key in ("steps_offset", "clip_sample", "skip_prk_steps"):
        config.pop(key, None)
    (folder / SCHEDULER).write_text(json.dumps(config), encoding="utf-8")
    both = Both(folder)
    arguments: dict[str, Any] = {"num_inference_steps": 4, "height": 64, "width": 64}
    expected = generate_with_diffusers(both.base, 3, prompt="a red circle", **arguments)
    assert_same_images(both.ours("a red circle", seed=3, **arguments), expected)


@pytest.mark.parametrize("key", ["use_flow_sigmas", "use_dynamic_shifting", "sigma_data"])
def test_c8_settings_of_another_parametrisation(key: str, folder: Path) -> None:
    change(folder, SCHEDULER, **{key: True if key[0] == "u" else 1.0})
    with pytest.raises(CheckpointError, match="scheduler_config"):
        open_source(folder)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (SCHEDULER, "ignores new_key"),
        ("unet/config.json", "unet/config.json: unknown keys are ignored: new_key"),
        ("vae/config.json", "vae/config.json: unknown keys are ignored: new_key"),
        ("text_encoder/config.json", "text_encoder/config.json: unknown keys are ignored: new_key"),
        ("model_index.json", "new_key is unknown and ignored"),
    ],
)
def test_c8_unknown_keys_are_named(
    file: str, says: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_source(folder)
    assert not caplog.text
    change(folder, file, new_key=3)
    open_source(folder).load("vae")
    assert caplog.text.count(says) == 1


def test_c8_unet_with_another_input(folder: Path) -> None:
    change(folder, "unet/config.json", encoder_hid_dim=32, encoder_hid_dim_type="image_proj")
    with pytest.raises(CheckpointError, match="another projection of its encoder_hidden_states"):
        open_source(folder)


def test_c8_text_encoder_with_the_configuration_of_a_whole_clip(folder: Path) -> None:
    """Its sizes would be those of CLIP's smallest model, whatever the entry text_config says."""
    change(folder, "text_encoder/config.json", text_config={"hidden_size": 32}, model_type="clip")
    with pytest.raises(CheckpointError, match=r"text_encoder/config\.json is that of"):
        open_source(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_c8_component_of_another_library(part: str, folder: Path) -> None:
    """A class of the same name in a file of the repository is another class."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    change(folder, "model_index.json", **{part: ["my_module", index[part][1]]})
    with pytest.raises(CheckpointError, match=rf"{part} is \['my_module'"):
        open_source(folder)
