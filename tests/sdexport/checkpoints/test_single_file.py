"""Single files in the original layout: every weight is loaded, other files are identified."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import save_file

from sdexport.checkpoints.published_configs import FAMILIES, SingleFileFamily
from sdexport.checkpoints.single_file import SingleFile
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.demo_model import MODEL_DIR
from sdexport.engines.errors import CheckpointError, InvalidArgumentError
from tests.helpers.original_layout import SMALL, original_layout, random_modules, vae_layout

SD1, SD2, SDXL, REFINER = SMALL
TOKENIZER = MODEL_DIR / "tokenizer"
by_family = pytest.mark.parametrize("family", SMALL, ids=lambda family: family.name)


def write(
    path: Path,
    family: SingleFileFamily,
    modules: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> Path:
    save_file(original_layout(family, modules) | (extra or {}), path)
    return path


def assert_same(module: Any, expected: Any, *, half: bool = False) -> None:
    got, wanted = module.state_dict(), expected.state_dict()
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].dtype == torch.float32
        assert torch.equal(got[name], value.half().float() if half else value), name


@by_family
def test_every_weight_is_loaded(family: SingleFileFamily, tmp_path: Path) -> None:
    modules = random_modules(family)
    opened = SingleFile.open(write(tmp_path / "a.safetensors", family, modules), families=SMALL)
    assert opened.family == family and opened.has_vae
    for part, module in modules.items():
        loaded = opened.load(part)
        assert_same(loaded, module)
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
        assert not any(value.is_meta for value in (*loaded.parameters(), *loaded.buffers()))


@by_family
def test_half_precision_file_loads_as_float32(family: SingleFileFamily, tmp_path: Path) -> None:
    modules = random_modules(family)
    tensors = original_layout(family, modules)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file(halves, tmp_path / "a.safetensors")
    opened = SingleFile.open(tmp_path / "a.safetensors", families=SMALL)
    for part, module in modules.items():
        assert_same(opened.load(part), module, half=True)


def test_loaded_modules_compute_the_same(tmp_path: Path) -> None:
    modules = random_modules(SDXL)
    opened = SingleFile.open(write(tmp_path / "a.safetensors", SDXL, modules), families=SMALL)
    ids = torch.tensor([[595, 4, 5, 596, 596]])
    with torch.no_grad():
        for part in ("text_encoder", "text_encoder_2"):
            expected, result = modules[part](ids), opened.load(part)(ids)
            assert torch.equal(result.last_hidden_state, expected.last_hidden_state)
        latents = torch.randn(1, 4, 8, 8)
        decoded = opened.load("vae").decode(latents).sample
        assert torch.equal(decoded, modules["vae"].decode(latents).sample)


@by_family
def test_configs_make_a_diffusers_folder(family: SingleFileFamily, tmp_path: Path) -> None:
    modules = random_modules(family)
    opened = SingleFile.open(write(tmp_path / "a.safetensors", family, modules), families=SMALL)
    opened.write_configs(tmp_path / "folder", TOKENIZER)
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert hasattr(diffusers, index["_class_name"])
    for part, module in modules.items():
        assert index[part][1] == type(module).__name__
        config = json.loads((tmp_path / "folder" / part / "config.json").read_text())
        if part.startswith("text"):
            again = transformers.CLIPTextConfig(**config)
            assert again.hidden_size == module.config.hidden_size
        else:
            same = {k: list(v) if isinstance(v, tuple) else v for k, v in module.config.items()}
            assert all(same[k] == v for k, v in config.items() if k != "_class_name")
    pads = {
        part: json.loads((tmp_path / "folder" / name / "tokenizer_config.json").read_text())[
            "pad_token"
        ]
        for part, name in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
        if part in family.text_encoders
    }
    assert pads == {
        p: "!" if t.openclip else "<|endoftext|>" for p, t in family.text_encoders.items()
    }


@pytest.mark.parametrize("family", [SD1, SD2, SDXL], ids=lambda family: family.name)
def test_inpainting_is_recognised_by_nine_channels(
    family: SingleFileFamily, tmp_path: Path
) -> None:
    wide = replace(family, unet={**family.unet, "in_channels": 9})
    modules = random_modules(wide)
    opened = SingleFile.open(write(tmp_path / "a.safetensors", wide, modules), families=SMALL)
    assert opened.family.pipeline == family.inpaint_pipeline
    assert_same(opened.load("unet"), modules["unet"])


def test_extra_weights_are_ignored(tmp_path: Path) -> None:
    modules = random_modules(SD1)
    extra = {
        "alphas_cumprod": torch.ones(1000),
        "model_ema.decay": torch.tensor(0.9),
        "first_stage_model.loss.logvar": torch.zeros(()),
    }
    path = write(tmp_path / "a.safetensors", SD1, modules, extra)
    assert_same(SingleFile.open(path, families=SMALL).load("unet"), modules["unet"])


def test_averaged_weights_with_ema(tmp_path: Path) -> None:
    modules, averaged = random_modules(SD1), random_modules(SD1, seed=1)
    named = original_layout(SD1, averaged)
    extra = {
        "model_ema." + k.removeprefix("model.").replace(".", ""): v
        for k, v in named.items()
        if k.startswith("model.diffusion_model.")
    }
    path = write(tmp_path / "a.safetensors", SD1, modules, extra)
    assert_same(SingleFile.open(path, families=SMALL).load("unet"), modules["unet"])
    assert_same(SingleFile.open(path, families=SMALL, ema=True).load("unet"), averaged["unet"])
    plain = write(tmp_path / "b.safetensors", SD1, modules)
    with pytest.raises(CheckpointError, match=r"b\.safetensors: no averaged weights"):
        SingleFile.open(plain, families=SMALL, ema=True)


def test_file_without_vae(tmp_path: Path) -> None:
    modules = random_modules(SD1)
    del modules["vae"]
    opened = SingleFile.open(write(tmp_path / "a.safetensors", SD1, modules), families=SMALL)
    assert not opened.has_vae
    assert_same(opened.load("unet"), modules["unet"])


@pytest.mark.parametrize(
    ("family", "metadata", "extra", "chosen", "expected", "side"),
    [
        (SD1, {}, (), None, "epsilon", 64),
        (SD1, {}, (), "v_prediction", "v_prediction", 64),
        (SD2, {}, (), None, "v_prediction", 96),
        (SD2, {}, (), "epsilon", "epsilon", 64),
        (SD2, {"modelspec.prediction_type": "epsilon"}, (), None, "epsilon", 64),
        (SD2, {"modelspec.prediction_type": "epsilon"}, (), "v_prediction", "v_prediction", 96),
        (SDXL, {"modelspec.prediction_type": "v"}, (), None, "v_prediction", 128),
        (SDXL, {}, ("v_pred", "ztsnr"), None, "v_prediction", 128),
    ],
)
def test_prediction_type(
    family: SingleFileFamily,
    metadata: dict[str, str],
    extra: tuple[str, ...],
    chosen: str | None,
    expected: str,
    side: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tensors = original_layout(family, random_modules(family))
    tensors |= {name: torch.zeros(0) for name in extra}
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    opened = SingleFile.open(tmp_path / "a.safetensors", prediction_type=chosen, families=SMALL)
    scheduler = opened.family.scheduler
    assert scheduler["prediction_type"] == expected
    assert opened.family.unet["sample_size"] == side
    assert scheduler.get("rescale_betas_zero_snr", False) == ("ztsnr" in extra)
    assert ("--prediction-type epsilon" in caplog.text) == (
        family is SD2 and not (chosen or metadata)
    )


def test_unknown_prediction_type(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", SD1, random_modules(SD1))
    with pytest.raises(
        InvalidArgumentError, match="must be epsilon, v_prediction or sample, got 'flow'"
    ):
        SingleFile.open(path, prediction_type="flow", families=SMALL)


def test_tokenizer_is_required(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", SD1, random_modules(SD1))
    opened = SingleFile.open(path, families=SMALL)
    with pytest.raises(InvalidArgumentError, match=r"a\.safetensors: .*give --tokenizer FOLDER"):
        opened.write_configs(tmp_path / "folder", None)
    with pytest.raises(CheckpointError, match=r"expected vocab\.json and merges\.txt"):
        opened.write_configs(tmp_path / "folder", tmp_path)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    tensors = original_layout(SD1, random_modules(SD1))
    path = tmp_path / "a.safetensors"
    cases = (
        (
            "model.diffusion_model.out.2.weight",
            None,
            "unet: 1 of .* conv_out.weight: .* got nothing",
        ),
        ("first_stage_model.quant_conv.bias", torch.zeros(3), r"vae: 1 of .* \(8,\), got \(3,\)"),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            torch.zeros(32, dtype=torch.int8),
            "text_encoder: weight final_layer_norm.bias is torch.int8, so the file is quantised",
        ),
    )
    for name, value, message in cases:
        changed = {k: v for k, v in tensors.items() if k != name}
        save_file(changed if value is None else changed | {name: value}, path)
        with pytest.raises(CheckpointError, match=message):
            SingleFile.open(path, families=SMALL)


@pytest.mark.parametrize("channels", [5, 7, 8])
def test_unet_for_another_purpose(channels: int, tmp_path: Path) -> None:
    wide = replace(SD1, unet={**SD1.unet, "in_channels": channels})
    path = write(tmp_path / "a.safetensors", wide, random_modules(wide))
    with pytest.raises(
        CheckpointError, match=f"with {channels} input channels .* is not supported"
    ):
        SingleFile.open(path, families=SMALL)


ZEROS = torch.zeros(2, 2)
OTHER_MODELS = {
    "a language model": {"model.layers.0.self_attn.q_proj.weight": ZEROS, "lm_head.weight": ZEROS},
    "a Flux model": {"double_blocks.0.img_attn.qkv.weight": ZEROS},
    "an SD 3 or Flux model": {"model.diffusion_model.joint_blocks.0.x.weight": ZEROS},
    "a LoRA": {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": ZEROS},
    "a ControlNet": {"control_model.input_blocks.0.0.weight": ZEROS},
    "a T5 text encoder": {"encoder.block.0.layer.0.SelfAttention.q.weight": ZEROS},
    "a textual-inversion embedding": {"emb_params": ZEROS},
    "a UNet alone": {"down_blocks.0.resnets.0.conv1.weight": ZEROS},
    "a CLIP text enc": {"transformer.resblocks.0.attn.in_proj_weight": ZEROS, "ln": ZEROS},
    "a CLIP text": {"encoder.layers.0.self_attn.q_proj.weight": ZEROS, "final": ZEROS},
    "a CLIP text encoder": {"text_model.encoder.layers.0.mlp.fc1.weight": ZEROS},
    "a diffusion model of another family": {"model.diffusion_model.head.modulation": ZEROS},
    "a file without weights": {},
    "a file of 2 unknown weights such as a": {"a": ZEROS, "b": ZEROS},
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_another_model_is_identified(kind: str, tmp_path: Path) -> None:
    save_file({k: v.clone() for k, v in OTHER_MODELS[kind].items()}, tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"a\.safetensors is {kind}.*; expected a Stable Diff"
    ) as e:
        SingleFile.open(tmp_path / "a.safetensors")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("content", "entries"),
    [
        ({768: ({"0.weight": ZEROS}, {"0.weight": ZEROS}), "name": "style"}, "768, name"),
        ({"model": {"a.weight": ZEROS}, "ema": {"a.weight": ZEROS}}, "model, ema"),
    ],
)
def test_entries_of_another_pickle_are_named(
    content: dict[Any, Any], entries: str, tmp_path: Path
) -> None:
    """Hypernetworks, and files with several models in them."""
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"a file without weights by name, only {entries};"):
        SingleFile.open(tmp_path / "a.pt", allow_pickle=True)


def test_vae_alone_is_identified(tmp_path: Path) -> None:
    save_file(
        {k: v.contiguous() for k, v in vae_layout(random_modules(SD1)["vae"]).items()},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"a\.safetensors is a VAE; expected"):
        SingleFile.open(tmp_path / "a.safetensors")


def test_unet_without_text_encoder_is_identified(tmp_path: Path) -> None:
    tensors = original_layout(SD1, random_modules(SD1))
    save_file(
        {k: v for k, v in tensors.items() if "cond_stage" not in k}, tmp_path / "a.safetensors"
    )
    with pytest.raises(CheckpointError, match="holds a UNet but no text encoder"):
        SingleFile.open(tmp_path / "a.safetensors")
    save_file(tensors | {"edm_mean": torch.zeros(4)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"Playground v2\.5"):
        SingleFile.open(tmp_path / "a.safetensors")


def header(text: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text


OTHER_FILES = {
    b"": r"is empty \(0 bytes\)",
    b"\x89PNG\r\n\x1a\n...": "but a PNG image",
    b"\xff\xd8\xff\xe0": "but a JPEG image",
    b"GGUF\x03\x00\x00\x00": "but a GGUF file",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:12": "a git-LFS pointer.*lfs pull",
    b"<!DOCTYPE html><html><body>404</body></html>": "but a web page",
    b"\n <html>Sign in</html>": "but a web page",
    b'{"error": "Repository not found"}': "but a JSON text",
    b"Entry not found": "it does not begin with its header",
    b"\x00" * 100: "it does not begin with its header",
    b"x": "it does not begin with its header",
    header(b'{"a":', 5000): "is truncated: its header alone has 5,008 bytes, the file 13",
    header(b'{"a": nonsense}'): "is damaged: its header cannot be read",
    header(b'{"a": {"data_offsets": [0, "x"]}}'): "is damaged: its header cannot be read",
    header(b'{"a": {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}}') + b"1234": "is damaged",
    header(b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}') + b"1": (
        "is truncated: expected 106 bytes, got 71"
    ),
}


@pytest.mark.parametrize("content", OTHER_FILES)
def test_file_of_another_kind_is_identified(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=rf"model\.safetensors .*{OTHER_FILES[content]}"
    ) as error:
        SingleFile.open(path)
    assert "\n" not in str(error.value)


def test_truncated_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", SD1, random_modules(SD1))
    whole = path.read_bytes()
    for size in (9, 500, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"is truncated: .*; download it again"):
            SingleFile.open(path, families=SMALL)


def test_header_length_that_looks_like_a_pickle(tmp_path: Path) -> None:
    """The bytes of 640 are 80 02, which begin a pickle of protocol 2."""
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"weight": tensor}).encode().ljust(640)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert WeightFile.open(path).tensors["weight"].tolist() == [0.0]


def test_pickle_needs_allow_pickle(tmp_path: Path) -> None:
    modules = random_modules(SD1)
    tensors = original_layout(SD1, modules)
    for path, zipped in ((tmp_path / "a.ckpt", True), (tmp_path / "b.ckpt", False)):
        content = {"state_dict": tensors, "global_step": 470000}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            CheckpointError, match=r"\.ckpt is a pickle.*give --allow-pickle"
        ) as error:
            SingleFile.open(path, families=SMALL)
        assert "\n" not in str(error.value)
        opened = SingleFile.open(path, allow_pickle=True, families=SMALL)
        assert_same(opened.load("unet"), modules["unet"])


class _Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("1 / 0",))


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_rejected(zipped: bool, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Writes:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    for harm in (_Malicious(), Writes()):
        path = tmp_path / "a.ckpt"
        torch.save({"state_dict": harm}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            CheckpointError, match=r"a\.ckpt holds more than weights \(it calls"
        ) as error:
            SingleFile.open(path, allow_pickle=True)
        assert "\n" not in str(error.value) and not marker.exists()


@pytest.mark.parametrize("content", [b"PK\x03\x04 no archive", b"\x80\x04nonsense", b"\x80\x02."])
def test_damaged_pickle_is_rejected(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt (is truncated, damaged|holds more)") as error:
        SingleFile.open(path, allow_pickle=True)
    assert "\n" not in str(error.value)


def test_published_configurations_have_the_published_sizes() -> None:
    """Millions of weights, as the models' own papers and cards give them."""
    sizes = {}
    for family in FAMILIES:
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel(**family.unet)
            encoders = [
                getattr(transformers, t.class_name)(transformers.CLIPTextConfig(**t.config))
                for t in family.text_encoders.values()
            ]
        counts = [sum(p.numel() for p in m.parameters()) for m in (unet, *encoders)]
        sizes[family.name] = [round(count / 1e6) for count in counts]
    assert sizes == {
        "Stable Diffusion 1": [860, 123],
        "Stable Diffusion 2": [866, 340],
        "Stable Diffusion XL": [2567, 123, 695],
        "Stable Diffusion XL refiner": [2260, 695],
    }


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_real_shapes_fit_the_published_configurations(
    family: SingleFileFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block of the real depth finds its place; no weight is ever filled."""
    with torch.device("meta"):
        modules = {
            part: getattr(transformers, layout.class_name)(
                transformers.CLIPTextConfig(**layout.config)
            )
            for part, layout in family.text_encoders.items()
        }
        modules["unet"] = diffusers.UNet2DConditionModel(**family.unet)
        modules["vae"] = diffusers.AutoencoderKL(**family.vae)
    file = WeightFile(Path("model.safetensors"), original_layout(family, modules), {}, None)
    monkeypatch.setattr(WeightFile, "open", lambda path, allow_pickle: file)
    assert SingleFile.open("model.safetensors").family == family
