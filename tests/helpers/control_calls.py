"""Random pipeline calls with ControlNets, for ours and for diffusers' pipelines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import ControlNetModel, MultiControlNetModel
from PIL import Image

from sdexport import ControlNet, Pipeline
from sdexport.adapter_exporter import export_adapter
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.exporter import export
from sdexport.runtime import schedulers
from tests.helpers.control_nets import build_controlnet, control_image
from tests.helpers.families import build
from tests.helpers.lora_files import ATTENTION, random_lora, save_peft

TASKS = {
    "sd1": ("", "Img2Img", "Inpaint"),
    "sd2-v": ("", "Img2Img", "Inpaint"),
    "lcm": ("",),
    "inpainting": ("Inpaint",),
    "sdxl": ("", "Img2Img", "Inpaint"),
    "sdxl-inpainting": ("Inpaint",),
}
"""By family, the tasks for which diffusers has a ControlNet pipeline."""
NETS = ("first", "second")
LORA = "lora.safetensors"
_SCHEDULERS = (None, None, "euler", "euler_a", "heun", "dpm++", "unipc")
_PROMPTS = ("a red bird", "a small yellow star on a blue background", "an old house")


@dataclass(frozen=True)
class ControlCall:
    """A random call.

    shared: arguments that both pipelines have. nets: scale, start and end of each ControlNet.
    images: for each ControlNet its control image, or one for each prompt; an array is that of an
      inpainting ControlNet.
    lora: the scale of the LoRA of the checkpoint, if it is used.
    """

    family: str
    task: str
    seed: int
    scheduler: str | None
    guess_mode: bool
    shared: dict[str, Any]
    nets: list[tuple[float, float, float]]
    images: list[list[Any]]
    lora: float | None = None


def make_folder(family: str, folder: Path) -> None:
    """Write checkpoint/ and package/ of a family, and two ControlNets with their packages."""
    folder.mkdir()
    checkpoint = build(family, folder / "checkpoint")
    export(checkpoint, folder / "package", controlnet_inputs=True, lora_inputs=True)
    make_nets(checkpoint, folder)


def make_nets(checkpoint: Path, folder: Path) -> None:
    """Write two ControlNets for a checkpoint and their packages, and a LoRA."""
    folder.mkdir(exist_ok=True)
    unet = Checkpoint.open(checkpoint).load("unet")
    save_peft(folder / LORA, random_lora({"unet": unet}, ATTENTION))
    for seed, name in enumerate(NETS):
        net = build_controlnet(checkpoint, folder / f"{name}-net", seed)
        export_adapter(net, folder / name)


def random_control_call(number: int, families: Sequence[str] = tuple(TASKS)) -> ControlCall:
    """The call of a number, always the same."""
    rng = np.random.default_rng([7, number])
    family = families[number % len(families)]
    task = str(rng.choice(TASKS[family]))
    width, height = (int(side) * 8 for side in rng.integers(7, 12, 2))
    prompts = [str(each) for each in rng.choice(_PROMPTS, rng.integers(1, 3))]
    shared: dict[str, Any] = {
        "prompt": prompts,
        "height": height,
        "width": width,
        "num_inference_steps": int(rng.integers(2, 6)),
        "guidance_scale": float(rng.choice([1.0, 4.0, 7.5])),
        "num_images_per_prompt": int(rng.choice([1, 1, 2])),
    }
    if rng.random() < 0.7:
        shared["negative_prompt"] = ["blurry"] * len(prompts)
    picture = partial(control_image, seed=int(rng.integers(100)))
    if task:
        shared |= {"image": picture(width, height), "strength": float(rng.uniform(0.55, 1))}
    if task == "Inpaint":
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 :, : width // 2] = 255
        shared["mask_image"] = Image.fromarray(mask)
    count = int(rng.choice([1, 1, 2]))
    each = len(prompts) if count == 1 and rng.random() < 0.5 else 1
    images = [[any_image(rng) for _ in range(each)] for _ in range(count)]
    nets = [(float(rng.uniform(-0.5, 1.8)), *interval(rng)) for _ in range(count)]
    scheduler = None if family == "lcm" else _SCHEDULERS[rng.integers(len(_SCHEDULERS))]
    if scheduler == "heun" and task:  # diffusers counts its calls as steps, and may leave none
        scheduler = None
    guess_mode = bool(rng.random() < 0.3)
    return ControlCall(
        family, task, int(rng.integers(2**31)), scheduler, guess_mode, shared, nets, images
    )


def extended_call(number: int, families: Sequence[str] = tuple(TASKS)) -> ControlCall:
    """That call, at times with a LoRA, and with the control image of an inpainting ControlNet."""
    rng = np.random.default_rng([11, number])
    call = random_control_call(number, families)
    if call.task == "Inpaint" and rng.random() < 0.5:
        pixels = np.asarray(call.shared["image"], np.float32) / 255
        pixels[np.asarray(call.shared["mask_image"]) >= 128] = -1
        call = replace(call, images=[[pixels.transpose(2, 0, 1)[None]], *call.images[1:]])
    if rng.random() < 0.4:
        call = replace(call, lora=round(float(rng.uniform(-1, 1)), 3))
    return call


def interval(rng: np.random.Generator) -> tuple[float, float]:
    """A random start and end."""
    if rng.random() < 0.5:
        return 0.0, 1.0
    start = float(rng.uniform(0, 0.5))
    return start, float(rng.uniform(start + 0.1, 1))


def any_image(rng: np.random.Generator) -> Image.Image:
    """A control image of any size and of a mode that diffusers takes."""
    width, height = (int(side) for side in rng.integers(40, 140, 2))
    image = control_image(width, height, seed=int(rng.integers(100)))
    return image.convert(str(rng.choice(["RGB", "RGB", "L", "1", "P"])))


def diffusers_pipeline(name: str, checkpoint: Path, controlnet: Any) -> tuple[Any, Any]:
    """A pipeline of diffusers without a progress bar, and its own scheduler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(diffusers, name).from_pretrained(checkpoint, controlnet=controlnet)
    made.set_progress_bar_config(disable=True)
    return made, made.scheduler


def use_scheduler(pipeline: Any, own: Any, name: str | None) -> None:
    """Let a pipeline of diffusers run with a new scheduler of that name, or with its own one."""
    pipeline.scheduler = own
    if name is not None:
        class_ = getattr(diffusers, schedulers.class_name(name))
        pipeline.scheduler = class_.from_config(own.config)


class ControlPipelines:
    """diffusers' pipelines and ours for a checkpoint and its ControlNets.

    Args:
      folder: with the ControlNets. base: with checkpoint/ and package/, by default the same one.
    """

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        self.folder, self.base = folder, base or folder
        self.nets = [ControlNetModel.from_pretrained(folder / f"{name}-net") for name in NETS]
        self._made: dict[tuple[str, int], Any] = {}

    def of_diffusers(self, family: str, task: str, count: int) -> Any:
        """The pipeline of a task with one or two ControlNets."""
        if (task, count) not in self._made:
            nets: Any = self.nets[0] if count == 1 else MultiControlNetModel(self.nets)
            kind = "StableDiffusionXL" if family.startswith("sdxl") else "StableDiffusion"
            name = f"{kind}ControlNet{task}Pipeline"
            self._made[task, count] = diffusers_pipeline(name, self.base / "checkpoint", nets)
        return self._made[task, count]

    def expected(self, call: ControlCall) -> np.ndarray:
        """The images of diffusers, (N, H, W, 3) uint8."""
        count = len(call.nets)
        pipeline, own = self.of_diffusers(call.family, call.task, count)
        use_scheduler(pipeline, own, call.scheduler)
        images: Any = [each[0] if len(each) == 1 else each for each in call.images]
        images = [torch.from_numpy(i) if isinstance(i, np.ndarray) else i for i in images]
        scales, starts, ends = (list(values) for values in zip(*call.nets, strict=True))
        further = {
            "control_image" if call.task else "image": images if count > 1 else images[0],
            "controlnet_conditioning_scale": scales if count > 1 else scales[0],
            "control_guidance_start": starts if count > 1 else starts[0],
            "control_guidance_end": ends if count > 1 else ends[0],
            "guess_mode": call.guess_mode,
        }
        generator = torch.Generator().manual_seed(call.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if call.lora is not None:
                pipeline.load_lora_weights(str(self.folder / LORA), adapter_name="random")
                pipeline.set_adapters(["random"], [call.lora])
            found = pipeline(generator=generator, **call.shared, **further).images
            pipeline.unload_lora_weights()
        return np.stack([np.asarray(image) for image in found])

    def ours(self, call: ControlCall, pipe: Pipeline) -> np.ndarray:
        """The images of a pipeline of package/, (N, H, W, 3) uint8."""
        nets = [
            ControlNet(
                self.folder / name,
                images if len(images) > 1 else images[0],
                *settings,
                guess_mode=call.guess_mode,
            )
            for name, images, settings in zip(NETS, call.images, call.nets, strict=False)
        ]
        loras = None if call.lora is None else [(self.folder / LORA, call.lora)]
        further = {"seed": call.seed, "scheduler": call.scheduler, "loras": loras}
        found = pipe(controlnets=nets, **further, **call.shared)
        return np.stack([np.asarray(image) for image in found.images])
