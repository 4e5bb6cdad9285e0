"""verify --against: new inputs find differences, in the package or in the source."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from sdexport import Package
from sdexport.checkpoints.sources import Options
from sdexport.cli import main
from sdexport.engines.errors import InvalidArgumentError
from sdexport.verification.against_checkpoint import verify_against
from sdexport.verification.report import Check
from sdexport.verification.text_report import table
from tests.helpers.altered_models import alter_weight
from tests.helpers.changed_package import as_optimum_folder
from tests.helpers.families import build
from tests.helpers.lora_files import random_lora, save_peft

COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def against(folder: Path, source: Path, **options: Any) -> list[Check]:
    return verify_against(Package.load(folder, verify=False), source, seed=3, **options)


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def source_copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "source")


def alter_source(source: Path, part: str, factor: float = 1.1) -> None:
    path = next((source / part).glob("*.safetensors"))
    weights = load_file(path)
    name = max(weights, key=lambda key: weights[key].numel())
    weights[name] = weights[name] * factor
    save_file(weights, path, metadata={"format": "pt"})


def test_against_passes_every_component_at_every_shape(package: Path, checkpoint: Path) -> None:
    checks = against(package, checkpoint)
    assert failed(checks) == set(), table(checks)
    rows = {(c.name, c.inputs) for c in checks}
    assert rows == {
        ("configuration", ""),
        *(("text_encoder", shape) for shape in ("1x77", "3x19", "8x77")),
        ("unet", "1x4x16x16, 77 tokens"),
        ("unet", "3x4x17x11, 154 tokens"),
        ("unet", "8x4x9x13, 77 tokens"),
        *(("vae_decoder", shape) for shape in ("1x4x16x16", "3x4x17x11", "8x4x9x13")),
        *(("vae_encoder", shape) for shape in ("1x3x128x128", "3x3x136x88", "8x3x72x104")),
    }
    assert any(c.value("max_abs") for c in checks), (
        "equal to the last bit everywhere: were the graphs run at all?"
    )


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_against_finds_one_altered_weight_of_the_source(
    package: Path, source_copy: Path, part: str
) -> None:
    alter_source(source_copy, part)
    found = failed(against(package, source_copy))
    assert found and all(name.startswith(part) for name in found)


def test_against_finds_altered_weights_of_the_package(package_copy: Path, checkpoint: Path) -> None:
    alter_weight(package_copy / "vae_encoder" / "model.onnx", 1.1)
    assert failed(against(package_copy, checkpoint)) == {"vae_encoder"}


def test_against_finds_another_scheduler_and_another_tokenizer(
    package: Path, source_copy: Path
) -> None:
    path = source_copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.013}))
    merges = source_copy / "tokenizer" / "merges.txt"
    lines = merges.read_text().splitlines()
    lines[-1], lines[-2] = lines[-2], lines[-1]
    merges.write_text("\n".join(lines))
    checks = against(package, source_copy)
    assert failed(checks) == {"configuration"}
    assert "scheduler beta_end" in checks[0].note


def test_against_finds_a_missing_lora(
    package: Path, checkpoint: Path, modules: dict[str, Any], tmp_path: Path
) -> None:
    """The package was exported without it: the UNet differs, and no other component does."""
    pairs = random_lora({"unet": modules["unet"]}, ("to_q",))
    lora = save_peft(tmp_path / "style.safetensors", pairs)
    assert failed(against(package, checkpoint, options=Options(lora=(str(lora),)))) == {"unet"}


def test_against_another_family_or_size(package: Path, tmp_path: Path) -> None:
    sdxl = build("sdxl", tmp_path / "sdxl")
    with pytest.raises(
        InvalidArgumentError, match=r"is stable-diffusion-xl, .* is stable-diffusion \("
    ):
        against(package, sdxl)
    small = build("sd1", tmp_path / "sd1")
    with pytest.raises(
        InvalidArgumentError, match=r"text_encoder: last_hidden_state is .*, 32\), in .* 96\)"
    ):
        against(package, small)


def test_against_reads_a_folder_without_manifest(package_copy: Path, checkpoint: Path) -> None:
    as_optimum_folder(package_copy)
    result = call("verify", package_copy, "--against", checkpoint, "--seed", 1)
    assert result.exit_code == 0, result.output
    assert "unet" in result.stdout and "image" not in result.stdout


def test_against_on_the_command_line(package: Path, source_copy: Path) -> None:
    alter_source(source_copy, "text_encoder")
    result = call("verify", package, "--against", source_copy, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["passed"] is False and report["seed"] >= 0
    rows = [c for c in report["checks"] if not c["passed"]]
    assert {row["name"] for row in rows} == {"text_encoder"}
    assert {row["inputs"] for row in rows} == {"1x77", "3x19", "8x77"}
    assert any(c["name"] == "image" and c["passed"] for c in report["checks"])


def test_against_options_need_a_source(package: Path) -> None:
    for option in (("--lora", "a.safetensors"), ("--ema",), ("--seed", "0")):
        result = call("verify", package, *option)
        assert result.exit_code == 2 and "needs --against SOURCE" in result.stderr


def test_against_missing_source(package: Path, tmp_path: Path) -> None:
    result = call("verify", package, "--against", tmp_path / "nowhere")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "there is no such folder" in result.stderr


def test_against_without_pytorch(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sdexport.verification.against_checkpoint", None)
    result = call("verify", package, "--against", "anything")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "run: pip install 'sdexport[export]'" in result.stderr
