"""Random LoRAs, scales and calls: the images of diffusers, and of the merged checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdexport import Pipeline, load_pipeline
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.runtime import schedulers
from tests.helpers import lora_package
from tests.helpers.lora_files import WIDE, Pairs, random_lora, save_kohya, save_peft
from tests.helpers.lora_package import merged
from tests.helpers.shared import made_once
from tests.tolerances import IMAGE_ABS

FAMILIES = ("sd1", "sd2-v", "sdxl")
PROMPTS = {
    "plain": ["a red circle", "a blue star on a green background", "two yellow squares"],
    "automatic1111": ["a (red:1.3) circle", "[a:two:0.5] stars", "a star AND a [red] circle :0.6"],
    "comfyui": ["a (red:1.3) circle", "a (blue star:0.7)", "two yellow squares"],
}
LoraScales = list[tuple[Path, list[float]]]


@dataclass(frozen=True)
class Made:
    """A small checkpoint and its package."""

    folder: Path

    @cached_property
    def modules(self) -> dict[str, Any]:
        checkpoint = Checkpoint.open(self.folder / "checkpoint")
        return {part: checkpoint.load(part) for part in checkpoint.configs}

    @cached_property
    def pipes(self) -> dict[str, Pipeline]:
        return {
            backend: load_pipeline(self.folder / "package", backend)
            for backend in ("onnxruntime", "openvino")
        }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Made]]:
    found = {
        family: Made(
            made_once(
                tmp_path_factory,
                f"random_loras_{family}",
                lambda path, family=family: lora_package.make(path, family),
            )
        )
        for family in FAMILIES
    }
    yield found
    for each in found.values():
        for pipe in each.pipes.values():
            pipe.close()


def for_diffusers(path: Path) -> Path:
    """The same LoRA in PEFT's names; see by_diffusers."""
    return path.with_name(f"peft-{path.name}")


def with_alpha(pairs: Pairs, alpha: float) -> Pairs:
    """The factors with alpha / rank in the second one."""
    return {
        part: {name: (down, up * (alpha / len(down))) for name, (down, up) in layers.items()}
        for part, layers in pairs.items()
    }


def random_files(
    rng: np.random.Generator, modules: dict[str, Any], folder: Path, count: int
) -> LoraScales:
    """One to three files of random layers and kinds of names, with a scale for each image."""
    found: LoraScales = []
    while not found:
        for number in range(int(rng.integers(1, 4))):
            endings = rng.choice(WIDE, int(rng.integers(1, len(WIDE) + 1)), replace=False)
            chosen = [part for part in modules if part != "vae" and rng.random() < 0.7]
            pairs = random_lora(
                {part: modules[part] for part in chosen},
                [str(ending) for ending in endings],
                rank=int(rng.integers(1, 9)),
                seed=int(rng.integers(2**31)),
            )
            if not pairs:
                continue
            path = folder / f"{number}.safetensors"
            save_peft(path, pairs)
            if rng.random() < 0.5:
                unet = modules["unet"] if "text_encoder_2" in pairs else None
                alpha = float(rng.uniform(0.5, 8))
                save_peft(for_diffusers(path), with_alpha(pairs, alpha))
                save_kohya(path, pairs, alpha, unet)
            scales = [round(float(each), 3) for each in rng.uniform(-1, 1, count)]
            if rng.random() < 0.4:
                scales = scales[:1] * count
            elif rng.random() < 0.3:
                scales[0] = 0.0
            found.append((path, scales))
    return found


def random_call(rng: np.random.Generator, seed: int) -> dict[str, Any]:
    """Arguments of one image, that are the same for a whole batch."""
    call: dict[str, Any] = {
        "num_inference_steps": int(rng.integers(2, 5)),
        "guidance_scale": float(rng.choice([1.0, 3.0, 7.5])),
    }
    height, width = (64 + 8 * int(each) for each in rng.integers(0, 5, 2))
    if seed % 4 == 3:
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        call["image"] = small.resize((width, height), Image.Resampling.BICUBIC)
        call["strength"] = float(rng.choice([0.5, 0.75, 1.0]))
    else:
        call |= {"height": height, "width": width}
    return call


def by_diffusers(
    made: Made,
    loras: LoraScales,
    scheduler: str,
    images: list[tuple[str, int]],
    call: dict[str, Any],
) -> np.ndarray:
    """Each image of its own, with diffusers' LoRA layers in the modules.

    Of kohya's files diffusers 0.42 leaves out text encoders' projections with transformers 5 where
    the file has not all four of an attention, and cannot load files of some layers of SDXL. So it
    gets those in PEFT's names.
    """
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a second adapter, and of the safety checker
        pipe: Any = diffusers.DiffusionPipeline.from_pretrained(made.folder / "checkpoint")
        names = [f"lora{number}" for number in range(len(loras))]
        for name, (path, _) in zip(names, loras, strict=True):
            other = for_diffusers(path)
            pipe.load_lora_weights(str(other if other.exists() else path), adapter_name=name)
        if "image" in call:
            class_ = getattr(diffusers, type(pipe).__name__.replace("Pipeline", "Img2ImgPipeline"))
            options = {} if "XL" in class_.__name__ else {"requires_safety_checker": False}
            pipe = class_(**pipe.components, **options)
        pipe.set_progress_bar_config(disable=True)
        twin = getattr(diffusers, schedulers.class_name(scheduler))
        pipe.scheduler = twin.from_config(pipe.scheduler.config)
        found = []
        for place, (prompt, seed) in enumerate(images):
            pipe.set_adapters(names, [scales[place] for _, scales in loras])
            generator = torch.Generator().manual_seed(seed)
            result = pipe(prompt, negative_prompt="blurry", generator=generator, **call)
            found.append(np.asarray(result.images[0]))
    return np.stack(found).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_random_configurations(
    seed: int, made: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 1 of 255 from both, whatever the LoRAs, their scales and the call."""
    pytest.importorskip("peft", reason="diffusers loads LoRA files through peft")
    import transformers

    # other tests give it the attribute that diffusers' clip_skip needs
    monkeypatch.delattr(transformers.CLIPTextModel, "text_model", raising=False)
    rng = np.random.default_rng(seed)
    here = made[FAMILIES[seed % 3]]
    style = "plain" if seed % 5 < 3 else str(rng.choice(["automatic1111", "comfyui"]))
    backend = "openvino" if seed % 7 == 6 else "onnxruntime"
    count = int(rng.integers(1, 4))
    loras = random_files(rng, here.modules, tmp_path, count)
    call = random_call(rng, seed)
    scheduler = str(rng.choice(["ddim", "euler", "dpmpp_2m"]))
    images = [(PROMPTS[style][i], int(rng.integers(2**31))) for i in range(count)]
    ours = here.pipes[backend](
        [prompt for prompt, _ in images],
        negative_prompt=["blurry"] * count,
        seed=[each for _, each in images],
        prompt_style=style,
        scheduler=scheduler,
        loras=[(path, scales) for path, scales in loras],
        **call,
    )
    found = np.stack([np.asarray(image) for image in ours.images]).astype(int)
    for place, (prompt, each) in enumerate(images):
        same = [(path, scales[place]) for path, scales in loras]
        with merged(here.folder, here.modules, same) as reference:
            alone = reference(
                prompt,
                negative_prompt="blurry",
                seed=each,
                prompt_style=style,
                scheduler=scheduler,
                **call,
            )
        expected = np.asarray(alone.images[0]).astype(int)
        assert np.abs(found[place] - expected).max() <= IMAGE_ABS, (place, same, call)
    if style == "plain":
        expected = by_diffusers(here, loras, scheduler, images, call)
        assert np.abs(found - expected).max() <= IMAGE_ABS, (loras, call)
