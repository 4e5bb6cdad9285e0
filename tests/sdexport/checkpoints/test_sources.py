"""Single files, other VAEs and the rest on their way through the exporter."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdexport import Package
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.sources import Options, open_source
from sdexport.demo_model import MODEL_DIR
from sdexport.engines.errors import CheckpointError, InvalidArgumentError, SDExportError
from sdexport.exporter import export
from tests.helpers.lora_files import ATTENTION, random_lora, save_kohya
from tests.helpers.original_layout import (
    SMALL,
    original_layout,
    random_modules,
    use_families,
    vae_layout,
)

TOKENIZER = MODEL_DIR / "tokenizer"
SD1 = SMALL[0]


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where checkpoints store temporary configurations; nothing may remain there."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def small_families(monkeypatch: pytest.MonkeyPatch) -> None:
    use_families(monkeypatch, SMALL)


@pytest.fixture
def file(small_families: None, tmp_path: Path) -> Path:
    """A small SD 1 in the original layout."""
    save_file(original_layout(SD1, random_modules(SD1)), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_single_file_is_a_checkpoint(file: Path, temporary: Path) -> None:
    checkpoint = open_source(file, options=Options(tokenizer=TOKENIZER))
    assert checkpoint.source["type"] == "file" and len(checkpoint.source["sha256"]) == 64
    assert checkpoint.scheduler_config["_class_name"] == "PNDMScheduler"
    assert checkpoint.configs["unet"].cross_attention_dim == 32
    for part, module in random_modules(SD1).items():
        loaded = checkpoint.load(part).state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in module.state_dict().items())
    assert list(temporary.iterdir())
    del checkpoint
    gc.collect()
    assert not list(temporary.iterdir())


@pytest.fixture
def embedded(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, modules: dict[str, Any], tmp_path: Path
) -> Path:
    """The demo model as one file, and its family among the published ones."""
    opened = Checkpoint.open(checkpoint)

    def published(part: str) -> dict[str, Any]:
        config = json.loads((checkpoint / part / "config.json").read_text())
        return {name: value for name, value in config.items() if name[0] != "_"}

    layout = SD1.text_encoders["text_encoder"]
    text = replace(layout, config=vars(opened.configs["text_encoder"]))
    family = replace(
        SD1,
        text_encoders={"text_encoder": text},
        unet=published("unet"),
        vae=published("vae"),
        scheduler=opened.scheduler_config,
    )
    use_families(monkeypatch, (family,))
    save_file(original_layout(family, modules), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.usefixtures("without_tracing")
def test_single_file_is_exported_and_verified(embedded: Path, tmp_path: Path) -> None:
    manifest = export(embedded, tmp_path / "package", options=Options(tokenizer=TOKENIZER))
    assert manifest.source.keys() == {"type", "sha256"}
    assert any(name.startswith("image.") for name in manifest.verification or {})
    package = Package.load(tmp_path / "package")
    assert set(package.manifest.components) == {
        "text_encoder",
        "unet",
        "vae_decoder",
        "vae_encoder",
    }
    texts = [f.read_text() for f in (tmp_path / "package").rglob("*.json")]
    assert not any("sdexport-" in text or str(tmp_path) in text for text in texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(), r"model\.safetensors: a single file holds no tokenizer; give --tokenizer"),
        (Options(tokenizer=Path("nowhere")), "no tokenizer in nowhere"),
        (Options(tokenizer=TOKENIZER, ema=True), r"no averaged weights .*omit --ema"),
        (Options(tokenizer=TOKENIZER, vae=Path("nowhere")), "no VAE at nowhere"),
    ],
)
def test_errors_leave_no_files(
    options: Options, message: str, file: Path, tmp_path: Path, temporary: Path
) -> None:
    with pytest.raises((SDExportError, FileNotFoundError), match=message) as error:
        export(file, tmp_path / "package", options=options)
    assert "\n" not in str(error.value) and str(temporary) not in str(error.value)
    assert not (tmp_path / "package").exists() and not list(temporary.iterdir())


def test_family_that_cannot_be_exported_is_named_by_its_file(
    small_families: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdexport.runtime.models.families.pipelines", lambda: ("AnotherPipeline",))
    save_file(original_layout(SD1, random_modules(SD1)), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"/model\.safetensors: pipelines of class"):
        open_source(tmp_path / "model.safetensors", options=Options(tokenizer=TOKENIZER))


def test_options_that_do_not_fit_the_source(checkpoint: Path, file: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="not a single file; omit --tokenizer"):
        open_source(checkpoint, options=Options(tokenizer=TOKENIZER))
    with pytest.raises(InvalidArgumentError, match="not a single file; omit --ema"):
        open_source(checkpoint, options=Options(ema=True))
    with pytest.raises(InvalidArgumentError, match="is a file; omit --revision"):
        open_source(file, revision="main", options=Options(tokenizer=TOKENIZER))


def test_prediction_type_of_a_folder(checkpoint: Path) -> None:
    assert open_source(checkpoint).folder == checkpoint
    changed = open_source(checkpoint, options=Options(prediction_type="v_prediction"))
    assert changed.scheduler_config["prediction_type"] == "v_prediction"
    with pytest.raises(
        InvalidArgumentError, match="must be epsilon, v_prediction or sample, got 'flow'"
    ):
        open_source(checkpoint, options=Options(prediction_type="flow"))


def test_lora_is_merged_once_and_the_file_stays(file: Path, tmp_path: Path) -> None:
    modules = {k: v for k, v in random_modules(SD1).items() if k != "vae"}
    lora = save_kohya(tmp_path / "lora.safetensors", random_lora(modules, ATTENTION), None)
    before = file.read_bytes()
    opened = open_source(file, options=Options(tokenizer=TOKENIZER, lora=(str(lora),)))
    first = opened.load("unet")
    assert same(opened.load("unet"), first) and not same(first, modules["unet"])
    assert file.read_bytes() == before


def test_nan_in_a_file_is_named(file: Path) -> None:
    tensors = load_file(file)
    tensors["first_stage_model.decoder.conv_in.weight"][0, 0, 0, 0] = torch.nan
    save_file(tensors, file)
    checkpoint = open_source(file, options=Options(tokenizer=TOKENIZER))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: vae: weight .* holds NaN"):
        checkpoint.load("vae")


def same(module: Any, expected: Any) -> bool:
    got = module.state_dict()
    return all(torch.equal(got[k], v) for k, v in expected.state_dict().items())


@pytest.fixture
def other() -> Any:
    return random_modules(SD1, seed=5)["vae"]


def test_vae_from_a_folder(checkpoint: Path, other: Any, tmp_path: Path) -> None:
    other.save_pretrained(tmp_path / "pipeline" / "vae")
    for folder in (tmp_path / "pipeline", tmp_path / "pipeline" / "vae"):
        opened = open_source(checkpoint, options=Options(vae=folder))
        assert same(opened.load("vae"), other)
        assert opened.configs["vae"].block_out_channels == [8, 16, 16, 16]
        assert len(opened.source["vae.sha256"]) == 64 and opened.source["type"] == "folder"


@pytest.mark.parametrize("layout", ["original", "prefixed", "diffusers", "diffusers of old"])
def test_vae_from_a_file(layout: str, file: Path, other: Any, tmp_path: Path) -> None:
    state = {k: v.contiguous().clone() for k, v in vae_layout(other).items()}
    if layout == "prefixed":
        state = {f"first_stage_model.{k}": v for k, v in state.items()}
    if layout.startswith("diffusers"):
        state = {k: v.clone() for k, v in other.state_dict().items()}
    if layout.endswith("old"):
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, old in names.items():
            state = {
                k.replace(f"attentions.0.{new}", f"attentions.0.{old}"): v for k, v in state.items()
            }
    save_file(state, tmp_path / "vae.safetensors")
    opened = open_source(
        file, options=Options(tokenizer=TOKENIZER, vae=tmp_path / "vae.safetensors")
    )
    assert same(opened.load("vae"), other)
    assert same(opened.load("unet"), random_modules(SD1)["unet"])


def test_file_without_vae_uses_another(small_families: None, other: Any, tmp_path: Path) -> None:
    tensors = original_layout(SD1, random_modules(SD1))
    path = tmp_path / "model.safetensors"
    save_file({k: v for k, v in tensors.items() if not k.startswith("first_stage")}, path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors holds no VAE; give --vae"):
        open_source(path, options=Options(tokenizer=TOKENIZER))
    other.save_pretrained(tmp_path / "vae")
    opened = open_source(path, options=Options(tokenizer=TOKENIZER, vae=tmp_path / "vae"))
    assert same(opened.load("vae"), other)


def test_vae_of_another_scale_logs_a_warning(
    checkpoint: Path, other: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other.save_pretrained(tmp_path / "vae")
    open_source(checkpoint, options=Options(vae=tmp_path / "vae"))
    assert "its scaling factor is 0.18215, that of the checkpoint's VAE 0.4458" in caplog.text


def test_files_that_are_no_vae(checkpoint: Path, other: Any, tmp_path: Path) -> None:
    def fails(path: Path, message: str) -> None:
        with pytest.raises((SDExportError, FileNotFoundError), match=message) as error:
            open_source(checkpoint, options=Options(vae=path))
        assert "\n" not in str(error.value)

    fails(tmp_path, "no VAE: config.json is missing")
    other.save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    fails(tmp_path / "vae", r"vae: missing diffusion_pytorch_model\.safetensors")
    (tmp_path / "vae" / "config.json").write_text("{")
    fails(tmp_path / "vae", r"config\.json is damaged")
    (tmp_path / "vae" / "config.json").write_text("[]")
    fails(tmp_path / "vae", "holds no JSON object")
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderDC"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    fails(tmp_path / "vae", "AutoencoderDC is not supported; expected")
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    fails(tmp_path / "lora.safetensors", r"lora\.safetensors is a LoRA; expected a VAE")
    save_file({"encoder.conv_in.weight": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    fails(tmp_path / "wrong.safetensors", "weights are missing or of another shape")


def test_command_line_names_the_mistake_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_text("<html>404</html>")
    command = [sys.executable, "-m", "sdexport", "export", str(tmp_path / "page.safetensors")]
    done = subprocess.run([*command, str(tmp_path / "package")], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "a web page" in done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["page.safetensors"]


def test_export_options_reach_the_exporter(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from sdexport import cli

    calls: list[Any] = []

    def export(source: str, package: Path, *, options: Options, **rest: Any) -> Any:
        calls.append((source, options, rest))
        raise InvalidArgumentError("seen enough")

    monkeypatch.setattr("sdexport.exporter.export", export)
    arguments = [
        "--lora",
        "a:0.5",
        "--lora",
        "b",
        "--embedding",
        "c",
        "--vae",
        "d",
        "--ema",
        "--allow-pickle",
    ]
    arguments += ["--tokenizer", "e", "--prediction-type", "v_prediction"]
    result = CliRunner().invoke(cli.main, ["export", "x.ckpt", str(tmp_path / "p"), *arguments])
    assert result.exit_code == 1 and result.stderr == "error: seen enough\n"
    expected = Options(
        tokenizer=Path("e"),
        allow_pickle=True,
        prediction_type="v_prediction",
        ema=True,
        vae=Path("d"),
        lora=("a:0.5", "b"),
        embedding=("c",),
    )
    assert calls[0][:2] == ("x.ckpt", expected)
