"""Images with T2I-Adapters and IP-Adapters equal those of diffusers' pipelines."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import MultiAdapter
from PIL import Image
from transformers import CLIPImageProcessor

from sdexport import ControlNet, IPAdapter, Pipeline, T2IAdapter, load_pipeline
from sdexport.adapter_exporter import export_adapter
from sdexport.exporter import export
from tests.helpers.control_calls import use_scheduler
from tests.helpers.control_nets import build_controlnet
from tests.helpers.family_pipelines import over_diffusers
from tests.helpers.image_adapters import (
    random_checkpoint,
    random_image_encoder,
    random_ip_adapter,
    random_t2i_adapter,
)
from tests.helpers.lora_files import random_lora, save_peft
from tests.tolerances import IMAGE_ABS, UNUSED_ABS

pytestmark = pytest.mark.slow
SIZE = {"height": 64, "width": 96}
CALLS = 17
"""Random calls of each checkpoint; 102 in all."""
KINDS = {"sd1": ("full_adapter", "light_adapter"), "sdxl": ("full_adapter_xl",)}


@dataclass
class Adapted:
    """A checkpoint with adapters: diffusers' modules, and our packages."""

    family: str
    folder: Path
    theirs: Any
    scheduler: Any
    pipe: Pipeline
    t2i: dict[str, Any]
    encoder: Any
    ip: dict[str, Any]

    def package(self, name: str) -> Path:
        return self.folder / f"{name}-package"

    def with_t2i(self, *names: str) -> Any:
        xl = "XL" if self.family == "sdxl" else ""
        class_ = getattr(diffusers, f"StableDiffusion{xl}AdapterPipeline")
        adapters = [self.t2i[name] for name in names]
        adapter = adapters[0] if len(adapters) == 1 else MultiAdapter(adapters)
        options: dict[str, Any] = {"requires_safety_checker": False}
        if xl:
            options = {"force_zeros_for_empty_prompt": True}
        components = dict(self.theirs.components)
        if not xl:
            del components["image_encoder"]
        made = class_(
            **components,
            adapter=adapter,
            **options,
        )
        made.set_progress_bar_config(disable=True)
        return made

    def with_ip(self, *names: str, task: str = "", **further: Any) -> Any:
        made = self.theirs
        if task:
            made = getattr(diffusers, type(self.theirs).__name__.replace("Pipeline", task))(
                **self.theirs.components, **further
            )
            made.set_progress_bar_config(disable=True)
        made.register_modules(
            image_encoder=self.encoder, feature_extractor=CLIPImageProcessor(size=28, crop_size=28)
        )
        made.load_ip_adapter(
            [self.ip[name] for name in names],
            subfolder="",
            weight_name=["x.safetensors"] * len(names),
            image_encoder_folder=None,
            low_cpu_mem_usage=False,
        )
        return made


def build(family: str, folder: Path, seed: int) -> Adapted:
    checkpoint = random_checkpoint(family, folder / "checkpoint", seed)
    export(
        checkpoint,
        folder / "package",
        t2i_adapter_inputs=True,
        ip_adapter_inputs=True,
        lora_inputs=True,
        controlnet_inputs=True,
    )
    theirs = over_diffusers(checkpoint)
    t2i = {}
    for number, kind in enumerate(KINDS[family]):
        t2i[kind] = random_t2i_adapter(kind, seed + number)
        t2i[kind].save_pretrained(folder / kind)
        export_adapter(folder / kind, folder / f"{kind}-package")
    build_controlnet(checkpoint, folder / "controlnet", seed)
    export_adapter(folder / "controlnet", folder / "controlnet-package")
    encoder = random_image_encoder(folder / "image_encoder", seed)
    ip = {}
    for kind in ("base", "plus"):
        path = folder / f"{kind}.safetensors"
        ip[kind] = random_ip_adapter(kind, theirs.unet, path, seed)
        export_adapter(path, folder / f"{kind}-package")
    pipe = load_pipeline(folder / "package")
    return Adapted(family, folder, theirs, theirs.scheduler, pipe, t2i, encoder, ip)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def adapted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Adapted]:
    made = build(request.param, tmp_path_factory.mktemp(request.param), 0)
    with made.pipe:
        yield made


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (90, 70)) -> Image.Image:
    """Soft random colours."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def difference(ours: Any, theirs: Any) -> int:
    one, two = (np.asarray(image, int) for image in (ours, theirs))
    assert one.shape == two.shape
    assert np.ptp(two) > 20, "a flat image shows nothing"
    return int(np.abs(one - two).max())


def both(
    adapted: Adapted,
    pipeline: Any,
    theirs: dict[str, Any],
    *,
    scheduler: str | None = None,
    least: int = 3 * IMAGE_ABS,
    **ours: Any,
) -> int:
    """The largest difference of the images of both pipelines.

    Args:
      scheduler: of both; default that of the checkpoint.
      least: the images differ by more than that from those without the adapter.
    """
    prompt = ours.pop("prompt", "a red circle")
    shared = {"num_inference_steps": 3, "guidance_scale": ours.pop("guidance_scale", 5.0), **SIZE}
    shared |= ours.pop("both", {})
    use_scheduler(pipeline, adapted.scheduler, scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pipeline(
            prompt,
            generator=torch.Generator().manual_seed(7),
            **shared,
            **theirs,
        ).images
    call = {"seed": 7, "scheduler": scheduler, **shared}
    images = adapted.pipe(prompt, **call, **ours).images
    plain = adapted.pipe(prompt, **call).images
    assert max(map(difference_only, images, plain)) > least, "the adapter has no effect"
    return max(map(difference, images, expected))


def difference_only(one: Any, two: Any) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(two, int)).max())


def test_t2i_adapter(adapted: Adapted) -> None:
    for kind in adapted.t2i:
        ours = [T2IAdapter(adapted.package(kind), picture(1), scale=0.8)]
        theirs = {"image": picture(1), "adapter_conditioning_scale": 0.8}
        found = both(adapted, adapted.with_t2i(kind), theirs, t2i_adapters=ours)
        assert found <= IMAGE_ABS, kind


def test_ip_adapter(adapted: Adapted) -> None:
    for kind in ("base", "plus"):
        pipeline = adapted.with_ip(kind)
        pipeline.set_ip_adapter_scale(0.7)
        try:
            ours = [IPAdapter(adapted.package(kind), picture(2), scale=0.7)]
            theirs = {"ip_adapter_image": picture(2)}
            found = both(adapted, pipeline, theirs, ip_adapters=ours)
        finally:
            pipeline.unload_ip_adapter()
        assert found <= IMAGE_ABS, kind


def test_t2i_adapters_of_a_batch_in_part_of_the_steps(adapted: Adapted) -> None:
    """Several prompts with images of their own, without guidance; in SDXL's first steps alone."""
    kind = next(iter(adapted.t2i))
    factor = 0.5 if adapted.family == "sdxl" else 1.0
    images = [picture(3), picture(4)]
    ours = [T2IAdapter(adapted.package(kind), images, scale=1.2, factor=factor)]
    theirs: dict[str, Any] = {"image": images, "adapter_conditioning_scale": 1.2}
    if adapted.family == "sdxl":
        theirs["adapter_conditioning_factor"] = factor
    found = both(
        adapted,
        adapted.with_t2i(kind),
        theirs,
        t2i_adapters=ours,
        prompt=["a red circle", "a blue square"],
        guidance_scale=1.0,
    )
    assert found <= IMAGE_ABS


def test_several_t2i_adapters(adapted: Adapted) -> None:
    kinds = [*adapted.t2i, *adapted.t2i][:2]
    scales = [0.7, -0.4]
    images = [picture(5), picture(6)]
    pairs = zip(kinds, images, scales, strict=True)
    ours = [T2IAdapter(adapted.package(kind), image, scale) for kind, image, scale in pairs]
    theirs = {"image": images, "adapter_conditioning_scale": scales}
    found = both(adapted, adapted.with_t2i(*kinds), theirs, t2i_adapters=ours)
    assert found <= IMAGE_ABS


def test_several_ip_adapters_with_several_images(adapted: Adapted) -> None:
    """Scales by block, a batch of prompts, and no guidance."""
    by_block = {"down": {"block_1": 0.8}, "up": [0.5], "mid": 1.0}
    pipeline = adapted.with_ip("base", "plus")
    pipeline.set_ip_adapter_scale([by_block, 0.6])
    try:
        ours = [
            IPAdapter(adapted.package("base"), [picture(7), picture(8)], scale=by_block),
            IPAdapter(adapted.package("plus"), picture(9), scale=0.6),
        ]
        theirs = {"ip_adapter_image": [[picture(7), picture(8)], picture(9)]}
        for guidance_scale in (1.0, 6.0):
            found = both(
                adapted,
                pipeline,
                theirs,
                ip_adapters=ours,
                prompt=["a red circle", "a blue square"],
                guidance_scale=guidance_scale,
            )
            assert found <= IMAGE_ABS, guidance_scale
    finally:
        pipeline.unload_ip_adapter()


def test_ip_adapters_with_masks(adapted: Adapted) -> None:
    masks = [picture(10, "L"), picture(11, "L")]
    processor = diffusers.image_processor.IPAdapterMaskProcessor()
    prepared = processor.preprocess(masks, **SIZE)
    pipeline = adapted.with_ip("base", "plus")
    pipeline.set_ip_adapter_scale([[0.7, 0.9], 0.5])
    attention = {"ip_adapter_masks": [prepared.reshape(1, 2, *prepared.shape[2:]), None]}
    try:
        ours = [
            IPAdapter(adapted.package("base"), [picture(12), picture(13)], [0.7, 0.9], masks),
            IPAdapter(adapted.package("plus"), picture(9), scale=0.5),
        ]
        theirs = {
            "ip_adapter_image": [[picture(12), picture(13)], picture(9)],
            "cross_attention_kwargs": attention,
        }
        found = both(adapted, pipeline, theirs, ip_adapters=ours)
    finally:
        pipeline.unload_ip_adapter()
    assert found <= IMAGE_ABS


def test_ip_adapter_from_an_image(adapted: Adapted) -> None:
    pipeline = adapted.with_ip("base", task="Img2ImgPipeline")
    pipeline.set_ip_adapter_scale(0.9)
    size = SIZE["width"], SIZE["height"]
    try:
        ours = [IPAdapter(adapted.package("base"), picture(14), scale=0.9)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = pipeline(
                "a red circle",
                image=picture(15, size=size),
                strength=0.7,
                num_inference_steps=5,
                guidance_scale=4.0,
                ip_adapter_image=picture(14),
                generator=torch.Generator().manual_seed(3),
            ).images
    finally:
        pipeline.unload_ip_adapter()
    images = adapted.pipe(
        "a red circle",
        image=picture(15, size=size),
        strength=0.7,
        num_inference_steps=5,
        guidance_scale=4.0,
        seed=3,
        ip_adapters=ours,
    ).images
    assert difference(images[0], expected[0]) <= IMAGE_ABS


def test_both_kinds_at_once(adapted: Adapted) -> None:
    """Through the graph that takes all kinds; as diffusers' SDXL pipeline, which takes both."""
    kind = next(iter(adapted.t2i))
    t2i = [T2IAdapter(adapted.package(kind), picture(1), scale=0.8)]
    ip = [IPAdapter(adapted.package("base"), picture(2), scale=0.7)]
    if adapted.family == "sdxl":
        pipeline = adapted.with_t2i(kind)
        pipeline.register_modules(
            image_encoder=adapted.encoder,
            feature_extractor=CLIPImageProcessor(size=28, crop_size=28),
        )
        pipeline.load_ip_adapter(
            [adapted.ip["base"]],
            subfolder="",
            weight_name=["x.safetensors"],
            image_encoder_folder=None,
            low_cpu_mem_usage=False,
        )
        pipeline.set_ip_adapter_scale(0.7)
        theirs = {
            "image": picture(1),
            "adapter_conditioning_scale": 0.8,
            "ip_adapter_image": picture(2),
        }
        try:
            found = both(adapted, pipeline, theirs, t2i_adapters=t2i, ip_adapters=ip)
        finally:
            pipeline.unload_ip_adapter()
        assert found <= IMAGE_ABS
        return
    call: dict[str, Any] = {"num_inference_steps": 2, "seed": 1, **SIZE}
    images = [
        adapted.pipe("a red circle", **call, t2i_adapters=one, ip_adapters=two).images[0]
        for one, two in ((t2i, ip), (t2i, None), (None, ip), (None, None))
    ]
    for i, image in enumerate(images):
        assert all(difference_only(image, other) > IMAGE_ABS for other in images[i + 1 :])


def test_scale_zero_changes_nothing(adapted: Adapted) -> None:
    kind = next(iter(adapted.t2i))
    call: dict[str, Any] = {"num_inference_steps": 2, "seed": 1, "output_type": "np", **SIZE}
    plain = adapted.pipe("a red circle", **call).images
    t2i = [T2IAdapter(adapted.package(kind), picture(1), scale=0)]
    ip = [IPAdapter(adapted.package("plus"), picture(2), scale=0)]
    for ours in (
        {"t2i_adapters": t2i},
        {"ip_adapters": ip},
        {"t2i_adapters": t2i, "ip_adapters": ip},
    ):
        images = adapted.pipe("a red circle", **call, **ours).images
        assert np.abs(images - plain).max() <= UNUSED_ABS


def test_ip_adapter_with_a_lora(adapted: Adapted) -> None:
    pairs = random_lora({"unet": adapted.theirs.unet}, ("to_q", "to_k", "to_v", "to_out.0"))
    path = save_peft(adapted.folder / "lora.safetensors", pairs)
    pipeline = adapted.with_ip("base")
    pipeline.set_ip_adapter_scale(0.8)
    pipeline.load_lora_weights(str(path))
    try:
        ours = [IPAdapter(adapted.package("base"), picture(2), scale=0.8)]
        theirs = {"ip_adapter_image": picture(2)}
        found = both(adapted, pipeline, theirs, ip_adapters=ours, loras=[path])
    finally:
        pipeline.unload_lora_weights()
        pipeline.unload_ip_adapter()
    assert found <= IMAGE_ABS


def test_ip_adapter_with_a_controlnet(adapted: Adapted) -> None:
    net = diffusers.ControlNetModel.from_pretrained(adapted.folder / "controlnet")
    pipeline = adapted.with_ip("plus", task="ControlNetPipeline", controlnet=net)
    pipeline.set_ip_adapter_scale(0.8)
    size = SIZE["width"], SIZE["height"]
    theirs = {
        "ip_adapter_image": picture(2),
        "image": picture(3, size=size),
        "controlnet_conditioning_scale": 0.6,
    }
    try:
        ours = [IPAdapter(adapted.package("plus"), picture(2), scale=0.8)]
        nets = [ControlNet(adapted.package("controlnet"), picture(3, size=size), scale=0.6)]
        found = both(adapted, pipeline, theirs, ip_adapters=ours, controlnets=nets)
    finally:
        pipeline.unload_ip_adapter()
    assert found <= IMAGE_ABS


def random_size(family: str, choose: random.Random) -> dict[str, int]:
    """Sides that diffusers' adapters of a family take."""
    unit = 16 if family == "sdxl" else 8
    return {
        side: unit * choose.randint(56 // unit + 1, 104 // unit) for side in ("height", "width")
    }


def random_t2i(adapted: Adapted, choose: random.Random, count: int) -> tuple[Any, Any, Any]:
    """A pipeline of diffusers with T2I-Adapters, its arguments, and ours."""
    kinds = choose.choices(list(adapted.t2i), k=choose.choice([1, 1, 2]))
    scales = [round(choose.uniform(-0.5, 1.7), 3) for _ in kinds]
    images = [[picture(choose.randrange(100)) for _ in range(count)] for _ in kinds]
    factor = choose.choice([1.0, 0.6]) if adapted.family == "sdxl" else 1.0
    theirs: dict[str, Any] = {
        "image": images[0] if len(kinds) == 1 else images,
        "adapter_conditioning_scale": scales[0] if len(kinds) == 1 else scales,
    }
    if adapted.family == "sdxl":
        theirs["adapter_conditioning_factor"] = factor
    ours = [
        T2IAdapter(adapted.package(kind), each, scale, factor=factor)
        for kind, each, scale in zip(kinds, images, scales, strict=True)
    ]
    return adapted.with_t2i(*kinds), theirs, {"t2i_adapters": ours}


def random_ip(
    adapted: Adapted, choose: random.Random, size: dict[str, int]
) -> tuple[Any, Any, Any]:
    """The same with IP-Adapters, of one or two images each, perhaps with a mask for each."""
    kinds = choose.sample(["base", "plus"], choose.choice([1, 1, 2]))
    images = [[picture(choose.randrange(100)) for _ in range(choose.randint(1, 2))] for _ in kinds]
    masked = [choose.random() < 0.4 for _ in kinds]
    masks = [
        [picture(choose.randrange(100), "L") for _ in each] if has else None
        for each, has in zip(images, masked, strict=True)
    ]
    scales: list[Any] = [
        [round(choose.uniform(-0.5, 1.5), 3) for _ in each]
        if has
        else choose.choice([round(choose.uniform(-0.5, 1.5), 3), {"up": 0.5, "mid": 1.0}])
        for each, has in zip(images, masked, strict=True)
    ]
    pipeline = adapted.with_ip(*kinds)
    pipeline.set_ip_adapter_scale(scales)
    theirs: dict[str, Any] = {"ip_adapter_image": images}
    if any(masked):
        processor = diffusers.image_processor.IPAdapterMaskProcessor()
        prepared = [each and processor.preprocess(each, **size) for each in masks]
        shaped = [None if p is None else p.reshape(1, -1, *p.shape[2:]) for p in prepared]
        theirs["cross_attention_kwargs"] = {"ip_adapter_masks": shaped}
    ours = [
        IPAdapter(adapted.package(kind), *settings)
        for kind, *settings in zip(kinds, images, scales, masks, strict=True)
    ]
    return pipeline, theirs, {"ip_adapters": ours}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_configurations(family: str, seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    adapted = build(family, tmp_path, seed)
    with adapted.pipe:
        for number in range(CALLS):
            prompt: Any = choose.choice(["a red circle", ["a red circle", "a blue square"]])
            size = random_size(family, choose)
            call: dict[str, Any] = {
                "prompt": prompt,
                "guidance_scale": choose.choice([1.0, 4.0, 9.0]),
                "scheduler": choose.choice([None, "euler", "dpm++", "unipc"]),
                "both": {"num_inference_steps": choose.randint(2, 5), **size},
            }
            if choose.random() < 0.5:
                count = len(prompt) if isinstance(prompt, list) else 1
                pipeline, theirs, ours = random_t2i(adapted, choose, count)
            else:
                pipeline, theirs, ours = random_ip(adapted, choose, size)
            found = both(adapted, pipeline, theirs, least=0, **call, **ours)
            if "ip_adapters" in ours:
                pipeline.unload_ip_adapter()
            assert found <= IMAGE_ABS, (number, call, ours)
