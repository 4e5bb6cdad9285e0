"""Small random ControlNet-Unions, and random pipeline calls with them, ours and diffusers'."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel

from sdexport import ControlNet, Pipeline
from sdexport.adapter_exporter import export_adapter
from sdexport.exporter import export
from tests.helpers.control_calls import (
    ControlCall,
    any_image,
    diffusers_pipeline,
    interval,
    random_control_call,
    use_scheduler,
)
from tests.helpers.control_nets import EMBEDDING, strengthen
from tests.helpers.families import build

TYPES = {"first": 6, "second": 8}
"""Types of control images of each network."""
MODE_NAMES = ("openpose", "depth", "scribble", "canny", "normal", "segment")
_LAYERS = {"first": 1, "second": 2}


@dataclass(frozen=True)
class UnionCall:
    """A random call: one network with several modes, or both with one mode each.

    call: whose `nets` and `images` have an entry for each mode. modes: of each entry.
    """

    call: ControlCall
    modes: list[int]
    both: bool


def random_union(checkpoint: Path, name: str, **config: Any) -> Any:
    """A ControlNet-Union for the UNet of a checkpoint, whose residuals change the image."""
    torch.manual_seed(list(TYPES).index(name))
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    base = dict(ControlNetModel.from_unet(unet, load_weights_from_unet=False).config)
    known = inspect.signature(ControlNetUnionModel.__init__).parameters
    base = {key: value for key, value in base.items() if key in known}
    width = unet.config.block_out_channels[0]
    base |= {"num_trans_channel": width, "num_proj_channel": width, "num_trans_head": 4}
    base |= {"conditioning_embedding_out_channels": EMBEDDING, "num_control_type": TYPES[name]}
    base |= {"num_trans_layer": _LAYERS[name], **config}
    model = ControlNetUnionModel(**base)
    strengthen(model)
    with torch.no_grad():
        model.spatial_ch_projs.weight.normal_(std=0.3)
    return model.eval()


def build_union(checkpoint: Path, folder: Path, name: str, **config: Any) -> Path:
    """Write the folder of a random ControlNet-Union."""
    random_union(checkpoint, name, **config).save_pretrained(folder)
    return folder


def make_union(checkpoint: Path, folder: Path) -> None:
    """Write a ControlNet-Union for a checkpoint of SD 1, and its package."""
    folder.mkdir()
    net = build_union(checkpoint, folder / "union-net", "first", addition_time_embed_dim=8)
    export_adapter(net, folder / "union")


def make_union_folder(folder: Path) -> None:
    """Write checkpoint/ and package/ of SDXL, and two ControlNet-Unions with their packages."""
    folder.mkdir()
    checkpoint = build("sdxl", folder / "checkpoint")
    export(checkpoint, folder / "package", controlnet_inputs=True)
    for name in TYPES:
        export_adapter(build_union(checkpoint, folder / f"{name}-net", name), folder / name)


def random_union_call(number: int) -> UnionCall:
    """The call of a number, always the same."""
    rng = np.random.default_rng([11, number])
    base = random_control_call(number, ("sdxl",))
    both = bool(rng.random() < 0.3)
    count = 2 if both else int(rng.choice([1, 2, 2, 3]))
    modes = [int(mode) for mode in rng.permutation(6)[:count]]
    each = len(base.shared["prompt"]) if rng.random() < 0.5 and not both else 1
    images = [[any_image(rng) for _ in range(each)] for _ in range(count)]
    always = both and base.guess_mode  # diffusers fails in a step without any network then
    nets = [
        (float(rng.uniform(-0.5, 1.8)), *((0.0, 1.0) if always else interval(rng)))
        for _ in range(count)
    ]
    call = ControlCall(
        base.family,
        base.task,
        base.seed,
        base.scheduler,
        base.guess_mode,
        base.shared,
        nets,
        images,
    )
    return UnionCall(call, modes, both)


class UnionPipelines:
    """diffusers' pipelines and ours.

    Args:
      folder: of make_union_folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._nets = [
            ControlNetUnionModel.from_pretrained(folder / f"{name}-net") for name in TYPES
        ]
        for net in self._nets:
            net.register_forward_pre_hook(_types_of_rows, with_kwargs=True)
        self._made: dict[tuple[str, bool], Any] = {}

    def _of_diffusers(self, task: str, *, both: bool) -> Any:
        if (task, both) not in self._made:
            name = f"StableDiffusionXLControlNetUnion{task}Pipeline"
            nets: Any = self._nets if both else self._nets[0]
            self._made[task, both] = diffusers_pipeline(name, self.folder / "checkpoint", nets)
        return self._made[task, both]

    def expected(self, found: UnionCall) -> np.ndarray:
        """The images of diffusers, (N, H, W, 3) uint8."""
        call = found.call
        pipeline, own = self._of_diffusers(call.task, both=found.both)
        use_scheduler(pipeline, own, call.scheduler)
        images: Any = [each[0] if len(each) == 1 else each for each in call.images]
        scales, starts, ends = (list(values) for values in zip(*call.nets, strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = pipeline(
                generator=torch.Generator().manual_seed(call.seed),
                control_image=images,
                control_mode=list(found.modes),
                controlnet_conditioning_scale=scales,
                control_guidance_start=starts,
                control_guidance_end=ends,
                guess_mode=call.guess_mode,
                **call.shared,
            ).images
        return np.stack([np.asarray(image) for image in result])

    def ours(self, found: UnionCall, pipe: Pipeline) -> np.ndarray:
        """The images of a pipeline of package/, (N, H, W, 3) uint8."""
        call = found.call
        names = list(TYPES) if found.both else ["first"] * len(found.modes)
        nets = [
            ControlNet(
                self.folder / name,
                images if len(images) > 1 else images[0],
                *settings,
                guess_mode=call.guess_mode,
                mode=MODE_NAMES[mode] if mode % 2 else mode,
            )
            for name, images, settings, mode in zip(
                names, call.images, call.nets, found.modes, strict=True
            )
        ]
        result = pipe(seed=call.seed, scheduler=call.scheduler, controlnets=nets, **call.shared)
        return np.stack([np.asarray(image) for image in result.images])


def _types_of_rows(net: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Give a network the types of its rows alone.

    In guess mode with guidance, diffusers' pipelines run it on half of the rows, and fail as they
    give it the types of all.
    """
    rows = len(args[0] if args else kwargs["sample"])
    return args, kwargs | {"control_type": kwargs["control_type"][:rows]}
