"""T2I-Adapters and IP-Adapters as arguments of a call and of the command line."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor

from sdexport import (
    InvalidArgumentError,
    IPAdapter,
    PackageError,
    Pipeline,
    T2IAdapter,
    load_pipeline,
    save_image,
)
from sdexport.checkpoints.adapter_source import open_adapter
from sdexport.cli import main
from sdexport.engines.errors import CheckpointError
from tests.helpers.family_pipelines import over_diffusers
from tests.tolerances import IMAGE_ABS, UNUSED_ABS

CALL: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "height": 64, "width": 64}
PROMPT = "a red circle"


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (50, 70)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope="module")
def pipe(image_adapters: Path) -> Iterator[Pipeline]:
    with load_pipeline(image_adapters / "package") as opened:
        yield opened


@pytest.fixture(scope="module")
def theirs(lora_folder: Path) -> Any:
    return over_diffusers(lora_folder / "checkpoint")


def largest(one: Any, two: Any) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(two, int)).max())


def as_diffusers(pipeline: Any, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shared = {key: value for key, value in CALL.items() if key != "seed"}
        generator = torch.Generator().manual_seed(CALL["seed"])
        return pipeline(PROMPT, generator=generator, **shared, **arguments).images[0]


def test_t2i_adapter_is_that_of_diffusers(
    pipe: Pipeline, theirs: Any, image_adapters: Path
) -> None:
    components = {k: v for k, v in theirs.components.items() if k != "image_encoder"}
    adapter = diffusers.T2IAdapter.from_pretrained(image_adapters / "t2i-source")
    made = diffusers.StableDiffusionAdapterPipeline(
        **components, adapter=adapter, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    expected = as_diffusers(made, image=picture(1), adapter_conditioning_scale=0.9)
    ours = [T2IAdapter(image_adapters / "t2i", picture(1), scale=0.9)]
    image = pipe(PROMPT, t2i_adapters=ours, **CALL).images[0]
    assert largest(image, expected) <= IMAGE_ABS
    assert largest(image, pipe(PROMPT, **CALL).images[0]) > IMAGE_ABS


@pytest.mark.parametrize("kind", ["base", "plus"])
def test_ip_adapter_is_that_of_diffusers(
    pipe: Pipeline, theirs: Any, image_adapters: Path, kind: str
) -> None:
    encoder = image_adapters / "image_encoder"
    theirs.register_modules(feature_extractor=CLIPImageProcessor(size=28, crop_size=28))
    theirs.load_ip_adapter(
        str(image_adapters),
        subfolder="",
        weight_name=f"{kind}.safetensors",
        image_encoder_folder=encoder.name,
        low_cpu_mem_usage=False,
    )
    theirs.set_ip_adapter_scale(0.8)
    try:
        expected = as_diffusers(theirs, ip_adapter_image=picture(2))
    finally:
        theirs.unload_ip_adapter()
    ours = [IPAdapter(image_adapters / kind, picture(2), scale=0.8)]
    image = pipe(PROMPT, ip_adapters=ours, **CALL).images[0]
    assert largest(image, expected) <= IMAGE_ABS
    assert largest(image, pipe(PROMPT, **CALL).images[0]) > IMAGE_ABS


def test_scale_zero_changes_nothing(pipe: Pipeline, image_adapters: Path) -> None:
    """Through the graph of both kinds too."""
    plain = pipe(PROMPT, output_type="np", **CALL).images
    t2i = [T2IAdapter(image_adapters / "t2i", picture(1), scale=0)]
    ip = [IPAdapter(image_adapters / "plus", picture(2), scale=0)]
    for ours in ({"t2i_adapters": t2i}, {"t2i_adapters": t2i, "ip_adapters": ip}):
        images = pipe(PROMPT, output_type="np", **CALL, **ours).images
        assert np.abs(images - plain).max() <= UNUSED_ABS


def test_factor_ends_the_effect(pipe: Pipeline, image_adapters: Path) -> None:
    def images(factor: float) -> Any:
        ours = [T2IAdapter(image_adapters / "t2i", picture(1), 10.0, factor)]
        return pipe(PROMPT, t2i_adapters=ours, **steps).images[0]

    steps = CALL | {"num_inference_steps": 6}
    plain = pipe(PROMPT, **steps).images[0]
    assert largest(images(0.0), plain) <= IMAGE_ABS
    assert largest(images(0.5), plain) > IMAGE_ABS
    assert largest(images(0.5), images(1.0)) > IMAGE_ABS


def test_settings_generate_the_image_again(
    pipe: Pipeline, image_adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("edges.png", 1), ("style.png", 2)):
        picture(seed).save(tmp_path / name)
    masks = tmp_path / "mask.png"
    picture(5, "L").save(masks)
    result = pipe(
        PROMPT,
        t2i_adapters=[T2IAdapter(image_adapters / "t2i", tmp_path / "edges.png", 0.9, 0.5)],
        ip_adapters=[IPAdapter(image_adapters / "base", tmp_path / "style.png", [0.7], [masks])],
        **CALL,
    )
    save_image(result.images[0], tmp_path / "out.png")
    for kind in ("t2i", "base"):
        shutil.copytree(image_adapters / kind, tmp_path / kind)
    monkeypatch.chdir(tmp_path)
    again = pipe.like(tmp_path / "out.png").images[0]
    assert largest(again, result.images[0]) == 0
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(InvalidArgumentError, match=r"made with the IP-Adapter 'base' .* not there"):
        pipe.like(tmp_path / "out.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: {"t2i_adapters": "canny"}, r"t2i_adapters: expected a list such as \[T2IA"),
        (lambda f: {"ip_adapters": ["x"]}, "ip_adapters: expected a IPAdapter, got 'x'"),
        (lambda f: {"t2i_adapters": [T2IAdapter(f / "t2i", picture(1))] * 17}, "at most 16"),
        (lambda f: {"t2i_adapters": [T2IAdapter(f / "base", picture(1))]}, "is the package of"),
        (lambda f: {"ip_adapters": [IPAdapter(f / "package", picture(1))]}, "package of a model"),
        (
            lambda f: {"t2i_adapters": [T2IAdapter(f / "t2i", [picture(1), picture(2)])]},
            "got 2 control images to generate 1 images",
        ),
        (
            lambda f: {"t2i_adapters": [T2IAdapter(f / "t2i", picture(1))], "width": 72},
            "takes sizes that are multiples of 16, got 72x64",
        ),
        (
            lambda f: {"t2i_adapters": [T2IAdapter(f / "t2i", np.full((9, 9, 3), np.nan))]},
            "NaN or infinity",
        ),
        (lambda f: {"ip_adapters": [IPAdapter(f / "base", [])]}, "at least one image"),
        (lambda f: {"ip_adapters": [IPAdapter(f / "base", 7)]}, "expected a file"),
        (
            lambda f: {"ip_adapters": [IPAdapter(f / "base", picture(1), masks=[picture(1)] * 2)]},
            "masks: expected one for each of 1 images, got 2",
        ),
        (
            lambda f: {"ip_adapters": [IPAdapter(f / "base", picture(1), {"down": {"x": 1}})]},
            r"IPAdapter: scale\['down'\]: no 'x' with image attention; the model has block_1",
        ),
        (
            lambda f: {
                "ip_adapters": [IPAdapter(f / "base", picture(1), [1.0, 2.0], [picture(1)])]
            },
            "expected a scale for each of 1 images",
        ),
        (lambda f: {"adapter_conditioning_scale": 0.5}, "give t2i_adapters=.*T2IAdapter"),
        (lambda f: {"ip_adapter_image": picture(1)}, "give ip_adapters=.*IPAdapter"),
    ],
)
def test_bad_arguments(pipe: Pipeline, image_adapters: Path, make: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        pipe(PROMPT, **{**CALL, **make(image_adapters)})


@pytest.mark.parametrize("value", [float("nan"), 1e9, "strong", None])
def test_bad_scales(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="T2IAdapter: scale must be -100 to 100"):
        T2IAdapter("t2i", picture(1), scale=value)
    with pytest.raises(InvalidArgumentError, match="scale must be -100 to 100"):
        IPAdapter("ip", picture(1), scale=value)
    with pytest.raises(InvalidArgumentError, match="T2IAdapter: factor must be 0 to 1"):
        T2IAdapter("t2i", picture(1), factor=value)


def test_other_bad_values() -> None:
    with pytest.raises(InvalidArgumentError, match="scales for each image need masks"):
        IPAdapter("ip", picture(1), scale=[1.0])
    with pytest.raises(InvalidArgumentError, match="expected the folder of a package, got ''"):
        IPAdapter("", picture(1))
    with pytest.raises(InvalidArgumentError, match="expected a control image, got None"):
        T2IAdapter("t2i", None)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="expected an image, got None"):
        IPAdapter("ip", None)  # type: ignore[arg-type]


def test_package_without_inputs_says_how_to_get_them(
    lora_package: Path, image_adapters: Path
) -> None:
    with load_pipeline(lora_package) as pipe:
        for ours, option in (
            ({"t2i_adapters": [T2IAdapter(image_adapters / "t2i", picture(1))]}, "t2i"),
            ({"ip_adapters": [IPAdapter(image_adapters / "base", picture(1))]}, "ip"),
        ):
            with pytest.raises(PackageError, match=f"sdexport export --{option}-adapter-inputs"):
                pipe(PROMPT, **CALL, **ours)  # type: ignore[arg-type]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_command_line(image_adapters: Path, tmp_path: Path) -> None:
    picture(1).save(tmp_path / "edges.png")
    listed = run("inspect", image_adapters / "package").output
    assert "T2I-Adapters" in listed and "IP-Adapters" in listed
    edges = tmp_path / "edges.png"
    made = run(
        *("generate", image_adapters / "package", PROMPT, "-o", tmp_path / "out.png"),
        *("--steps", 1, "--seed", 1, "--t2i-adapter", f"{image_adapters / 't2i'}:{edges}:0.5"),
        *("--ip-adapter", f"{image_adapters / 'base'}:{edges}"),
    )
    assert made.exit_code == 0, made.output
    assert (tmp_path / "out.png").is_file()


@pytest.mark.parametrize("option", ["--controlnet", "--t2i-adapter", "--ip-adapter"])
def test_command_line_with_a_model_for_an_adapter(
    option: str, image_adapters: Path, tmp_path: Path
) -> None:
    """The check of the memory, which comes first, leaves the message to the pipeline."""
    picture(1).save(tmp_path / "edges.png")
    package = image_adapters / "package"
    made = run(
        *("generate", package, PROMPT, "-o", tmp_path / "out.png", "--steps", 1),
        *(option, f"{package}:{tmp_path / 'edges.png'}"),
    )
    assert made.exit_code == 1
    assert f"{package} is the package of a model, not of " in made.output
    assert not (tmp_path / "out.png").exists()


def test_damaged_sources(image_adapters: Path, tmp_path: Path) -> None:
    weights = load_file(image_adapters / "base.safetensors")
    shutil.copytree(image_adapters / "image_encoder", tmp_path / "image_encoder")

    def fails(changed: dict[str, torch.Tensor], message: str) -> None:
        path = tmp_path / "ip.safetensors"
        save_file(changed, path)
        with pytest.raises(CheckpointError, match=message):
            open_adapter(path)

    missing = {k: v for k, v in weights.items() if k != "ip_adapter.3.to_k_ip.weight"}
    fails(missing, "ip_adapter.3 has weights of shapes")
    fails({k: v for k, v in weights.items() if ".3." not in k}, "ip_adapter.1, ip_adapter.3 and so")
    fails(
        {k: v for k, v in weights.items() if not k.startswith("image_proj")},
        r"without image_proj\.\*; it is incomplete",
    )
    fails({**weights, "other": torch.zeros(1)}, r"1 weight \(other\) are not used")
    wide = {**weights, "image_proj.proj.weight": torch.zeros(128, 30)}
    fails(wide, "features of width 30, and the image encoder .* has projection_dim 24")
    face = {**weights, "ip_adapter.0.to_q_lora.down.weight": torch.zeros(2, 2)}
    fails(face, "FaceID")
    torch.save({"image_proj": {}, "ip_adapter": {}}, tmp_path / "ip.bin")
    with pytest.raises(CheckpointError, match=r"is a pickle.*--allow-pickle"):
        open_adapter(tmp_path / "ip.bin")
    nested: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in weights.items():
        group, _, name = key.partition(".")
        nested[group][name] = value
    torch.save(nested, tmp_path / "ip.bin")
    opened = open_adapter(tmp_path / "ip.bin", allow_pickle=True)
    assert opened.configs["image_projection"].layers == [32] * 4
    save_file(weights, tmp_path / "ip.safetensors")
    with pytest.raises(FileNotFoundError, match="no image encoder at"):
        open_adapter(tmp_path / "ip.safetensors", image_encoder=tmp_path / "nothing")
    shutil.rmtree(tmp_path / "image_encoder")
    with pytest.raises(CheckpointError, match="give its folder with --image-encoder"):
        open_adapter(tmp_path / "ip.safetensors")
    with pytest.raises(CheckpointError, match="expected CLIPVisionModelWithProjection"):
        open_adapter(tmp_path / "ip.safetensors", image_encoder=image_adapters / "t2i-source")
