"""Small random ControlNet-XS, and random pipeline calls with them, ours and diffusers'."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetXSAdapter, UNet2DConditionModel, UNetControlNetXSModel

from sdexport import ControlNet, Pipeline
from sdexport.adapter_exporter import export_adapter
from sdexport.exporter import export
from tests.helpers.control_calls import (
    ControlCall,
    diffusers_pipeline,
    random_control_call,
    use_scheduler,
)
from tests.helpers.control_nets import EMBEDDING
from tests.helpers.families import build, enliven

_LEARNED = {"learn_time_embedding": True, "time_embedding_mix": 0.8}
ONE_LEVEL: dict[str, Any] = {
    "block_out_channels": (16,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "attention_head_dim": 2,
}
"""Settings of a UNet that is exported in half of the time."""
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {"block_out_channels": [6], **_LEARNED},
    "sd1": {"block_out_channels": [8, 16]},
    "sd2-v": {"size_ratio": 0.75, **_LEARNED, "time_embedding_mix": 0.4},
    "sdxl": {"block_out_channels": [6, 20], **_LEARNED, "conditioning_channel_order": "bgr"},
}
"""By family, of a ControlNet-XS for it; some numbers of channels have no large common factors.
"small" is SD 1 with ONE_LEVEL."""
_FAMILY = {"small": "sd1"}
_INPUT = ("image", "mask_image", "strength")


def build_base(family: str, folder: Path, seed: int = 0, **config: Any) -> Path:
    """Write a checkpoint of a family whose UNet has two layers in each block, as diffusers needs.

    Args:
      config: settings of the UNet that differ.
    """
    build(family, folder, seed)
    settings = dict(UNet2DConditionModel.load_config(folder / "unet"))
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_config({**settings, "layers_per_block": 2, **config})
    enliven("unet", unet)
    unet.save_pretrained(folder / "unet")
    return folder


def random_xs(checkpoint: Path, seed: int = 0, **settings: Any) -> Any:
    """A ControlNet-XS for the UNet of a checkpoint, which changes the image."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    heads = {"num_attention_heads": 2, "conditioning_embedding_out_channels": EMBEDDING}
    model = ControlNetXSAdapter.from_unet(unet, **{**heads, **settings})
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in ("ctrl_to_base", "base_to_ctrl", "control_to_base")):
                weight.normal_(std=0.5)  # they are initialised with zeros
            elif name.startswith("controlnet_cond_embedding") and weight.ndim > 1:
                gain = 12 if "conv_out" in name else 1.4  # so that what the image shows counts
                weight.normal_(std=gain / weight[0].numel() ** 0.5)
    return model.eval()


def make_xs_folder(family: str, folder: Path) -> None:
    """Write checkpoint/, package/, and a ControlNet-XS with its package: xs-net/ and xs/."""
    folder.mkdir()
    config = ONE_LEVEL if family == "small" else {}
    checkpoint = build_base(_FAMILY.get(family, family), folder / "checkpoint", **config)
    export(checkpoint, folder / "package")
    random_xs(checkpoint, **SETTINGS[family]).save_pretrained(folder / "xs-net")
    export_adapter(folder / "xs-net", folder / "xs", base=checkpoint)


def fused_of(folder: Path) -> Any:
    """diffusers' model of the UNet and the ControlNet-XS of a folder of make_xs_folder."""
    unet = UNet2DConditionModel.from_pretrained(folder / "checkpoint" / "unet")
    adapter = ControlNetXSAdapter.from_pretrained(folder / "xs-net")
    return UNetControlNetXSModel.from_unet(unet, adapter).eval()


def random_xs_call(number: int, family: str) -> ControlCall:
    """The call of a number, always the same; sides are those that diffusers takes."""
    call = random_control_call(number, (_FAMILY.get(family, family),))
    shared = {key: value for key, value in call.shared.items() if key not in _INPUT}
    shared |= {side: -(-shared[side] // 16) * 16 for side in ("width", "height")}
    return replace(
        call, task="", guess_mode=False, shared=shared, nets=call.nets[:1], images=call.images[:1]
    )


class XsPipelines:
    """diffusers' pipeline and ours.

    Args:
      folder: of make_xs_folder. xs: the package of the ControlNet-XS.
    """

    def __init__(self, folder: Path, family: str) -> None:
        self.folder, self.family, self.xs = folder, family, folder / "xs"
        kind = "StableDiffusionXL" if family == "sdxl" else "StableDiffusion"
        net = ControlNetXSAdapter.from_pretrained(folder / "xs-net")
        name = f"{kind}ControlNetXSPipeline"
        self._pipeline, self._own = diffusers_pipeline(name, folder / "checkpoint", net)

    def expected(self, call: ControlCall) -> np.ndarray:
        """The images of diffusers, (N, H, W, 3) uint8."""
        use_scheduler(self._pipeline, self._own, call.scheduler)
        (images,), ((scale, start, end),) = call.images, call.nets
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self._pipeline(
                generator=torch.Generator().manual_seed(call.seed),
                image=images if len(images) > 1 else images[0],
                controlnet_conditioning_scale=scale,
                control_guidance_start=start,
                control_guidance_end=end,
                **call.shared,
            ).images
        return np.stack([np.asarray(image) for image in found])

    def ours(self, call: ControlCall, pipe: Pipeline) -> np.ndarray:
        """The images of a pipeline of package/, (N, H, W, 3) uint8."""
        (images,), (settings,) = call.images, call.nets
        nets = [ControlNet(self.xs, images if len(images) > 1 else images[0], *settings)]
        found = pipe(seed=call.seed, scheduler=call.scheduler, controlnets=nets, **call.shared)
        return np.stack([np.asarray(image) for image in found.images])
