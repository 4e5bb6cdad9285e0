"""LoRAs of a pipeline call: the images of diffusers and of a merged checkpoint."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdexport import InvalidArgumentError, PackageError, Pipeline, load_pipeline
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.engines.errors import CheckpointError
from sdexport.engines.process_memory import resident_mb
from sdexport.exporter import export
from sdexport.runtime.adapters.call_loras import loras_of_call
from sdexport.runtime.adapters.lora_store import LoraStore
from sdexport.runtime.text.prompt_conditions import prepare_prompts
from sdexport.runtime.text.prompt_embeds import EmbedArguments, Text
from sdexport.runtime.text.prompt_texts import StepRange
from sdexport.runtime.text_encoders import TextEncoders
from tests.helpers import lora_package as lora_package_helper
from tests.helpers.diffusers_images import image_inputs
from tests.helpers.lora_files import ATTENTION, WIDE, random_lora, save_kohya, save_peft
from tests.helpers.lora_package import merged
from tests.tolerances import IMAGE_ABS, LORA_LOWER_PRECISION, LORA_SWITCH_MB

CALL: dict[str, Any] = {
    "prompt": "a red circle",
    "negative_prompt": "blurry",
    "num_inference_steps": 2,
    "seed": 3,
    "height": 64,
    "width": 64,
}


@pytest.fixture(scope="module")
def modules(lora_folder: Path) -> dict[str, Any]:
    checkpoint = Checkpoint.open(lora_folder / "checkpoint")
    return {part: checkpoint.load(part) for part in checkpoint.configs}


@pytest.fixture(scope="module")
def pipe(lora_package: Path) -> Iterator[Pipeline]:
    with load_pipeline(lora_package) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def files(modules: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """wide: all layers. unet: attention of the UNet alone. text: of the text encoder alone."""
    folder = tmp_path_factory.mktemp("loras")
    wide, narrow = random_lora(modules, WIDE, seed=1), random_lora(modules, ATTENTION, rank=5)
    return {
        "wide": save_kohya(folder / "wide.safetensors", wide, 2.0),
        "unet": save_peft(folder / "unet.safetensors", {"unet": narrow["unet"]}),
        "text": save_peft(folder / "text.safetensors", {"text_encoder": narrow["text_encoder"]}),
    }


def pixels(pipe: Pipeline, **arguments: Any) -> np.ndarray:
    images = pipe(**{**CALL, **arguments}).images
    return np.stack([np.asarray(image) for image in images]).astype(int)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_image_is_that_of_the_merged_checkpoint(
    backend: str, lora_folder: Path, modules: dict[str, Any], files: dict[str, Path]
) -> None:
    loras = [(files["wide"], 0.8), (files["unet"], -0.5), (files["text"], 1.0)]
    with load_pipeline(lora_folder / "package", backend) as pipe:
        plain, found = pixels(pipe), pixels(pipe, loras=loras)
    with merged(lora_folder, modules, loras) as reference:
        expected = pixels(reference)
    assert np.abs(found - expected).max() <= IMAGE_ABS
    assert np.abs(found - plain).max() > 10 * IMAGE_ABS


def test_image_is_that_of_diffusers(
    pipe: Pipeline,
    lora_folder: Path,
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("peft", reason="diffusers loads LoRA files through peft")
    import diffusers
    import transformers

    # other tests give it the attribute that diffusers' clip_skip needs
    monkeypatch.delattr(transformers.CLIPTextModel, "text_model", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a second adapter, which is intended
        theirs: Any = diffusers.DiffusionPipeline.from_pretrained(lora_folder / "checkpoint")
        theirs.set_progress_bar_config(disable=True)
        for name in ("wide", "unet"):
            theirs.load_lora_weights(str(files[name]), adapter_name=name)
        theirs.set_adapters(["wide", "unet"], [0.8, -0.5])
    call = {key: value for key, value in CALL.items() if key != "seed"}
    image = theirs(**call, generator=torch.Generator().manual_seed(CALL["seed"])).images[0]
    found = pixels(pipe, loras=[(files["wide"], 0.8), (files["unet"], -0.5)])[0]
    assert np.abs(found - np.asarray(image)).max() <= IMAGE_ABS


def test_without_loras_the_image_is_that_of_the_plain_graphs(
    pipe: Pipeline, files: dict[str, Path]
) -> None:
    expected = pixels(pipe)
    assert np.array_equal(pixels(pipe, loras=[]), expected)
    assert np.array_equal(pixels(pipe, loras=[(files["wide"], 0)]), expected)
    pixels(pipe, loras=[files["wide"]])
    assert np.array_equal(pixels(pipe), expected)  # nothing stays


def test_scales_for_each_image(pipe: Pipeline, files: dict[str, Path]) -> None:
    """Each image of a batch is the one that its scale gives alone."""
    batch = {"prompt": ["a red circle"] * 3, "negative_prompt": ["blurry"] * 3, "seed": [3, 3, 3]}
    scales = [0.0, 1.0, -0.5]
    for name in ("unet", "wide", "text"):
        found = pixels(pipe, **batch, loras=[(files[name], scales), files["unet"]])
        for image, scale in zip(found, scales, strict=True):
            alone = pixels(pipe, loras=[(files[name], scale), files["unet"]])[0]
            assert np.abs(image - alone).max() <= IMAGE_ABS
    with pytest.raises(InvalidArgumentError, match=r"3 scales of .* for 1 images"):
        pixels(pipe, loras=[(files["unet"], scales)])


TEXTS = {
    "plain": ("a red circle", "a blue star", "blurry"),
    "automatic1111": ("a (red:1.3) circle AND a blue star", "[a:two:0.5] stars, " * 40, "blurry"),
    "comfyui": ("a (red:1.3) circle", "a blue star " * 40, "blurry"),
    "compel": ("a red- circle", "a blue star. " * 40, "blurry+"),
}


@pytest.mark.parametrize("style", TEXTS)
def test_scales_for_each_text(style: str, pipe: Pipeline, files: dict[str, Path]) -> None:
    """A batch's embeddings are bit for bit those of each image alone."""
    one, two, negative = TEXTS[style]
    prompts, scales = [one, one, two, one], [0.0, 1.0, 1.0, -0.5]
    steps = StepRange(range(2), 2, 2)

    def encoded(texts: list[str], loras: list[Any]) -> tuple[Any, TextEncoders]:
        applied = loras_of_call(pipe._loras, loras, len(texts), pipe._components)
        encoders = applied.text_encoders(pipe.text_encoders)
        how = {"style": style, "guided": True, "variants": encoders.image_variants}
        negatives: list[Text] = [negative] * len(texts)
        encode = partial(encoders.encode, prompt_style=style)
        return prepare_prompts(encode, texts, negatives, EmbedArguments(), steps, **how)[
            0
        ], encoders

    def rows(found: Any, image: int, count: int) -> list[np.ndarray]:
        if isinstance(found, np.ndarray):
            return [found[image], found[count + image]]
        step = found(1, 2)
        pairs = zip(step.embeds, step.images, strict=True)
        return [each for each, of_image in pairs if of_image == image]

    loras = [(files["wide"], scales), (files["text"], [0.5, 0.0, 0.25, 1.0])]
    batch, encoders = encoded(prompts, loras)
    assert len(set(encoders.image_variants)) == 4
    for image, prompt in enumerate(prompts):
        single = [(path, each[image]) for path, each in loras]
        alone, _ = encoded([prompt], single)
        expected, found = rows(alone, 0, 1), rows(batch, image, len(prompts))
        assert len(expected) == len(found) >= 2
        for one_row, other in zip(expected, found, strict=True):
            length = min(len(one_row), len(other))  # the batch may repeat or extend it
            assert np.array_equal(one_row[:length], other[:length])


@pytest.mark.parametrize("options", [{"max_batch": 1}, {"low_memory": True}])
def test_pipeline_options_change_nothing(
    options: dict[str, Any], pipe: Pipeline, lora_package: Path, files: dict[str, Path]
) -> None:
    batch = {"prompt": ["a red circle"] * 2, "negative_prompt": ["blurry"] * 2, "seed": [3, 4]}
    loras = [(files["unet"], [0.5, 1.0]), (files["text"], 0.7)]
    expected = pixels(pipe, **batch, loras=loras)
    with load_pipeline(lora_package, **options) as other:
        assert np.abs(pixels(other, **batch, loras=loras) - expected).max() <= IMAGE_ABS


def test_openvino_compiles_for_the_layers_that_change(
    pipe: Pipeline, lora_package: Path, files: dict[str, Path]
) -> None:
    """Branches of other layers are left out; a LoRA that changes more compiles again."""
    compiled: list[Any] = []
    with load_pipeline(lora_package, "openvino") as other:
        for name, size in (("unet", 64), ("wide", 64), ("unet", 64), ("unet", 80), ("unet", 64)):
            loras, height = [(files[name], 0.5)], {"height": size}
            found = pixels(other, **height, loras=loras)
            assert np.abs(found - pixels(pipe, **height, loras=loras)).max() <= IMAGE_ABS
            compiled.append(other.session("unet.lora")._compiled)  # type: ignore[attr-defined]
    first, wide, again, dynamic, last = compiled
    assert len(first.empty) > 2 and not wide.empty and wide is again is not first
    assert first.shapes and wide.shapes and dynamic.shapes is None and dynamic is last


@pytest.mark.slow
def test_openvino_without_branches_for_all_sizes(
    pipe: Pipeline, lora_package: Path, files: dict[str, Path]
) -> None:
    with load_pipeline(lora_package, "openvino") as other:
        for size in (64, 80, 64):
            height = {"height": size}
            found = pixels(other, **height, loras=[files["unet"]])
            expected = pixels(pipe, **height, loras=[files["unet"]])
            assert np.abs(found - expected).max() <= IMAGE_ABS


@pytest.mark.parametrize("style", ["automatic1111", "comfyui", "compel"])
def test_prompt_styles(
    style: str, lora_folder: Path, modules: dict[str, Any], files: dict[str, Path], pipe: Pipeline
) -> None:
    prompts = {
        "automatic1111": "a (red:1.3) circle AND a blue star :0.7",
        "comfyui": "a (red:1.3) circle",
        "compel": "a red- circle",
    }
    arguments: dict[str, Any] = {"prompt": prompts[style], "prompt_style": style}
    loras = [(files["text"], 0.8), (files["unet"], 0.5)]
    found = pixels(pipe, **arguments, loras=loras)
    if style == "compel":  # whose graph PyTorch's session does not have
        assert np.abs(found - pixels(pipe, **arguments)).max() > IMAGE_ABS
        return
    with merged(lora_folder, modules, loras) as reference:
        assert np.abs(found - pixels(reference, **arguments)).max() <= IMAGE_ABS


def test_settings_name_the_loras_and_generate_the_image_again(
    pipe: Pipeline, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdexport import read_parameters, save_image

    for name in ("wide", "unet"):
        shutil.copy(files[name], tmp_path)
    loras = [(tmp_path / "wide.safetensors", 0.5), (tmp_path / "unet.safetensors", 1)]
    result = pipe(**CALL, loras=loras)
    path = tmp_path / "image.png"
    save_image(result.images[0], path)
    recorded = read_parameters(path)
    assert recorded == result.parameters[0] or recorded.file is not None
    assert recorded.loras is not None
    assert [(each.name, each.scale) for each in recorded.loras] == [("wide", 0.5), ("unet", 1.0)]
    assert "Loras: " in str(recorded)
    with load_pipeline(pipe.package.folder) as other:  # it has read no LoRA
        again = other.like(path)
        assert again.images[0].tobytes() == result.images[0].tobytes()
        assert again.parameters[0].loras == recorded.loras
        (tmp_path / "wide.safetensors").unlink()
        monkeypatch.chdir(tmp_path)
        assert other.like(path).images[0].tobytes() == result.images[0].tobytes()  # it is known
    with (
        load_pipeline(pipe.package.folder) as other,
        pytest.raises(InvalidArgumentError, match=r"with the LoRA 'wide' .* give loras \(--lora\)"),
    ):
        other.like(path)


def test_names(pipe: Pipeline, files: dict[str, Path], tmp_path: Path) -> None:
    name = pipe.load_lora(files["unet"], "ünet")
    try:
        assert name == "ünet" and pipe.load_lora(files["unet"], name) == name
        expected = pixels(pipe, loras=[(files["unet"], 0.5)])
        assert np.array_equal(pixels(pipe, loras=[("ünet", 0.5)]), expected)
        with pytest.raises(InvalidArgumentError, match="another LoRA with the name 'ünet'"):
            pipe.load_lora(files["text"], name)
    finally:
        pipe.unload_lora(name)
    for wrong in (None, 1, "\0"):
        with pytest.raises(InvalidArgumentError, match="expected the file of a LoRA, got"):
            pipe.load_lora(wrong)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no LoRA at ünet"):
        pixels(pipe, loras=["ünet"])
    with pytest.raises(InvalidArgumentError, match="no LoRA is loaded as 'ünet'"):
        pipe.unload_lora(name)


WRONG: dict[str, Any] = {
    "expected a list": "style.safetensors",
    r"expected \(file, scale\)": [("a", 1, 2)],
    "the scale of 'a' must be -100 to 100, got nan": [("a", float("nan"))],
    "the scale of 'a' must be -100 to 100, got 1000000000": [("a", 1e9)],
    "the scale of 'a' must be -100 to 100, got True": [("a", True)],
    "the scale of 'a' must be -100 to 100, got 'b'": [("a", "b")],
    "expected the name or the file of a LoRA, got None": [None],
    "expected the name or the file of a LoRA, got ''": [""],
    r"expected the name or the file of a LoRA, got 'a\\x00'": ["a\0"],
    r"the scale of 'a\.safetensors' must be": [(Path("a.safetensors"), 101)],
    "at most 64 at once": ["a"] * 65,
}


@pytest.mark.parametrize("message", WRONG)
def test_arguments_of_another_kind(message: str, pipe: Pipeline) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        pixels(pipe, loras=WRONG[message])


def test_many_loras_at_once(pipe: Pipeline, files: dict[str, Path]) -> None:
    """Fifty at a fiftieth are one."""
    one = pixels(pipe, loras=[files["wide"]])
    many = pixels(pipe, loras=[(files["wide"], 0.02)] * 50)
    assert np.abs(one - many).max() <= IMAGE_ABS


def test_file_that_was_written_to_is_read_again(
    pipe: Pipeline, files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    shutil.copy(files["unet"], path)
    before = pixels(pipe, loras=[path])
    name = pipe.load_lora(path)
    shutil.copy(files["wide"], path)
    assert np.abs(pixels(pipe, loras=[path]) - before).max() > IMAGE_ABS
    assert np.array_equal(pixels(pipe, loras=[name]), before)  # as it was loaded
    pipe.unload_lora(name)


@pytest.mark.parametrize("how", ["replaced", "written to", "deleted"])
def test_file_that_changes_while_an_image_is_made(
    how: str, pipe: Pipeline, files: dict[str, Path], tmp_path: Path
) -> None:
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    shutil.copy(files["unet"], path)
    before = pixels(pipe, loras=[path])

    def change(*_: Any) -> dict[str, Any]:
        if how == "deleted":
            path.unlink(missing_ok=True)
        elif how == "replaced":
            shutil.copy(files["wide"], other).replace(path)
        else:
            shutil.copy(files["wide"], path)
        return {}

    assert np.array_equal(pixels(pipe, loras=[path], callback_on_step_end=change), before)
    if how == "deleted":
        with pytest.raises(FileNotFoundError):
            pixels(pipe, loras=[path])
    else:
        assert np.abs(pixels(pipe, loras=[path]) - before).max() > IMAGE_ABS


def test_loras_that_do_not_fit(
    pipe: Pipeline, files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors, path = load_file(files["unet"]), tmp_path / "a.safetensors"
    first = next(name for name in tensors if "to_q.lora_A" in name)
    save_file({**tensors, "unet.no.such.layer.lora_A.weight": torch.ones(2, 2)}, path)
    pixels(pipe, loras=[path])
    assert "1 fit no layer" in caplog.text or "the others fit no layer" in caplog.text
    save_file({f"other.{name}": value for name, value in tensors.items()}, path)
    with pytest.raises(CheckpointError, match=r"none of its .* weights fits this checkpoint"):
        pixels(pipe, loras=[path])
    save_file({**tensors, first: torch.ones(5, 7)}, path)
    with pytest.raises(CheckpointError, match="to_q: expected factors of 32 inputs"):
        pixels(pipe, loras=[path])
    save_file({**tensors, first.replace("lora_A.weight", "dora_scale"): torch.ones(32, 1)}, path)
    with pytest.raises(CheckpointError, match=r"DoRA is no sum of factors .* --lora a.safetensors"):
        pixels(pipe, loras=[path])
    save_file({"lora_unet_conv_norm_out.w_norm": torch.ones(16)}, path)
    with pytest.raises(CheckpointError, match="norm is no sum of factors"):
        pixels(pipe, loras=[path])
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="no file of LoRA weights; expected a LoRA"):
        pixels(pipe, loras=[path])
    (tmp_path / "a.pt").write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match="is a pickle, which is not read at run time"):
        pixels(pipe, loras=[tmp_path / "a.pt"])


def test_folder_of_peft(pipe: Pipeline, files: dict[str, Path], tmp_path: Path) -> None:
    """One file for each component, whose names have no prefix, with settings next to them."""
    for part, file in {"unet": "unet", "text_encoder": "text"}.items():
        tensors = {
            f"base_model.model.{name.removeprefix(f'{part}.')}": value
            for name, value in load_file(files[file]).items()
        }
        (tmp_path / part).mkdir()
        save_file(tensors, tmp_path / part / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 5, "lora_alpha": 10}
        (tmp_path / part / "adapter_config.json").write_text(json.dumps(settings))
    found = pixels(pipe, loras=[(tmp_path, 0.5)])
    expected = pixels(pipe, loras=[files["unet"], files["text"]])
    assert np.abs(found - expected).max() <= IMAGE_ABS


def test_package_without_lora_inputs(package: Path, files: dict[str, Path]) -> None:
    with (
        load_pipeline(package) as pipe,
        pytest.raises(PackageError, match="'sdexport export --lora-inputs' writes it"),
    ):
        pixels(pipe, loras=[files["unet"]])


@pytest.mark.parametrize("backend", ["tensorrt", "webgpu"])
def test_backends_without_loras(backend: str, lora_package: Path, files: dict[str, Path]) -> None:
    with (
        load_pipeline(lora_package, backend) as pipe,
        pytest.raises(InvalidArgumentError, match=f"{backend} does not take LoRAs .* merge them"),
    ):
        pixels(pipe, loras=[files["unet"]])


def test_backend_that_needs_an_engine(
    lora_package: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """With one, what it was built for is checked before it runs."""
    plans = tmp_path / "tensorrt-rtx"
    with load_pipeline(lora_package, "tensorrt-rtx", engine_dir=tmp_path) as pipe:
        with pytest.raises(
            InvalidArgumentError, match=r"no engine of unet\.lora .* sdexport build"
        ):
            pixels(pipe, loras=[files["unet"]])
        plans.mkdir()
        (plans / "unet.lora.plan").touch()
        with pytest.raises(
            InvalidArgumentError, match="tensorrt-rtx takes one scale of 'unet' for"
        ):
            pixels(pipe, prompt=["a", "b"], negative_prompt="", loras=[(files["unet"], [0, 1])])


def test_cache_is_bounded(pipe: Pipeline, files: dict[str, Path], tmp_path: Path) -> None:
    """The last LoRA is kept in any case, and what was dropped is read again."""
    store = LoraStore(pipe.package, limit=1)
    for _ in range(2):
        for path in files.values():
            _, lora = store.find(path)
            assert store.nbytes == lora.nbytes
    name = store.add(files["unet"])
    store.find(files["text"])
    assert store.find(name)[1].sha256 == store.find(files["unet"])[1].sha256


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdxl", "sd2-v", "inpainting", "refiner", "lcm"])
def test_other_families(family: str, tmp_path: Path) -> None:
    """The export verifies the graphs; the image is that of the merged checkpoint."""
    folder = tmp_path / "made"
    lora_package_helper.make(folder, family)
    checkpoint = Checkpoint.open(folder / "checkpoint")
    modules = {part: checkpoint.load(part) for part in checkpoint.configs}
    original = modules["unet"] if "text_encoder_2" in modules else None
    pairs = random_lora(modules, WIDE)
    path = save_kohya(tmp_path / "a.safetensors", pairs, 2.0, original)
    arguments = image_inputs(family) | ({"strength": 0.5} if family == "refiner" else {})
    with load_pipeline(folder / "package") as pipe:
        plain = pixels(pipe, **arguments)
        found = pixels(pipe, **arguments, loras=[(path, 0.8)])
    with merged(folder, modules, [(path, 0.8)]) as reference:
        assert np.abs(found - pixels(reference, **arguments)).max() <= IMAGE_ABS
    assert np.abs(found - plain).max() > IMAGE_ABS


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions(
    precision: str,
    lora_folder: Path,
    modules: dict[str, Any],
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    """As far from float32 with a LoRA as without one."""
    package = tmp_path / "package"
    export(lora_folder / "checkpoint", package, precision=precision, lora_inputs=True)
    loras = [(files["wide"], 0.8)]
    with load_pipeline(package) as pipe:
        plain, found = pixels(pipe), pixels(pipe, loras=loras)
    with merged(lora_folder, modules, loras) as reference:
        expected = pixels(reference)
    with merged(lora_folder, modules, []) as reference:
        without = pixels(reference)
    far = np.square(plain - without).mean(), np.square(found - expected).mean()
    assert far[1] <= LORA_LOWER_PRECISION * far[0] + IMAGE_ABS


@pytest.mark.slow
@pytest.mark.skipif(resident_mb()["private_mb"] is None, reason="reads Linux's /proc")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_memory_stays_over_many_switches(
    backend: str, lora_package: Path, files: dict[str, Path]
) -> None:
    used = []
    with load_pipeline(lora_package, backend) as pipe:
        for _ in range(40):
            for path in files.values():
                pixels(pipe, num_inference_steps=1, loras=[(path, 0.5)])
            used.append(resident_mb()["private_mb"] or 0.0)
    assert used[-1] - used[9] <= LORA_SWITCH_MB, used
