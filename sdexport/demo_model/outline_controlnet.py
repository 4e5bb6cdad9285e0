"""Train the demo model's ControlNet: `python -m sdexport.demo_model.outline_controlnet --work DIR`.

It takes outlines, white on black, and the demo model draws its shapes in them. The encoder half of
the demo model's UNet is trained; the demo model itself stays as it is. The folder for diffusers is
DIR/controlnet; the repository has room for the package alone.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from torch import nn

from sdexport.adapter_exporter import export_adapter
from sdexport.demo_model import CONTROLNET_PACKAGE_DIR, MODEL_DIR, dataset
from sdexport.demo_model.adapter_training import AdapterExamples, Outlines
from sdexport.demo_model.architecture import use_plain_attention
from sdexport.demo_model.noisy_latents import weighted_error
from sdexport.demo_model.training import Trainer, add_common_arguments, read_model, seeded

PRECISION = "int8"
"""Of the package: 2.9 MB with its reference outputs, and 4.3 MB in fp16."""
CONDITIONING_WIDTHS = (8, 16, 32, 64)
"""Channels of the convolutions that bring the outlines to the size of the latents."""
SNR_FLOOR = 0.3
"""See weighted_error: the outlines say what is where, at the noisiest timesteps too."""


def main() -> None:
    """Train, or resume from the last checkpoint; write the ControlNet in fp16, and export it."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m sdexport.demo_model.outline_controlnet"
    )
    add_common_arguments(parser, CONTROLNET_PACKAGE_DIR)
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="the demo model")
    parser.add_argument("--scenes", type=int, default=4096)
    parser.add_argument("--cycles", type=int, nargs="+", default=[900, 700, 600], help="of steps")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    controlnet = train(args)
    controlnet.cpu().half().save_pretrained(args.work / "controlnet", safe_serialization=True)
    export_adapter(args.work / "controlnet", args.output, precision=PRECISION, force=True)


def build_controlnet(unet: Any) -> ControlNetModel:
    """A ControlNet that starts with the weights of the UNet's encoder half."""
    controlnet = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=CONDITIONING_WIDTHS
    )
    use_plain_attention(controlnet)
    _spread(controlnet.controlnet_cond_embedding)
    return controlnet.train().requires_grad_(True)


@torch.no_grad()
def _spread(embedding: Any) -> None:
    """Let the outlines reach the other layers, with a deviation of 1 after each convolution.

    PyTorch's initial weights shrink them to nothing on the way, and diffusers' last one is zero.
    """
    rng = seeded(0)
    scenes = [dataset.sample_scene(rng)[0] for _ in range(16)]
    pixels = np.stack([dataset.render_outlines(scene) for scene in scenes])
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    layers = [embedding.conv_in, *embedding.blocks, embedding.conv_out]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        layer.weight /= layer(values).std()
        values = nn.functional.silu(layer(values))


def guidance(
    controlnet: Any,
    sample: torch.Tensor,
    timesteps: torch.Tensor,
    hidden: torch.Tensor,
    outlines: torch.Tensor,
) -> dict[str, Any]:
    """What a ControlNet adds to the features of the UNet, as the arguments of its call."""
    down, middle = controlnet(sample, timesteps, hidden, outlines, return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def train(args: argparse.Namespace) -> ControlNetModel:
    """Train the ControlNet; returns it with averaged weights."""
    torch.manual_seed(args.seed)
    vae, unet, text_encoder = (m.to(args.device).eval() for m in read_model(args.model))
    unet.requires_grad_(False)
    modules = nn.ModuleDict({"controlnet": build_controlnet(unet)}).to(args.device)
    examples = AdapterExamples(
        args.work / "controlnet_latents.pt",
        args.model,
        vae,
        count=args.scenes,
        seed=(args.seed, 6),
        image_of=dataset.render,
        outlined=True,
    )
    outlines = Outlines(examples.scenes)
    ends = tuple(itertools.accumulate(args.cycles))
    trainer = Trainer(args.work / "controlnet.pt", modules, peak=1e-3, ends=ends)

    def loss_of(step: int) -> tuple[torch.Tensor, str]:
        numbers, batch = examples.draw(seeded(args.seed, 7, step))
        with torch.no_grad():
            hidden = text_encoder(batch.input_ids.to(args.device)).last_hidden_state
        timesteps = batch.timesteps.to(args.device)
        sample = batch.sample.to(args.device)
        control = outlines.draw(numbers).to(args.device)
        with torch.autocast(args.device, torch.bfloat16):
            residuals = guidance(modules["controlnet"], sample, timesteps, hidden, control)
            predicted = unet(sample, timesteps, hidden, **residuals).sample
        loss = weighted_error(predicted.float().cpu(), batch, floor=SNR_FLOOR)
        return loss, f"loss {loss.item():.4f}"

    return trainer.run(loss_of)["controlnet"].eval()


if __name__ == "__main__":
    main()
