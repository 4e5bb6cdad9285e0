"""Train a LoRA of the demo model: `python -m sdexport.demo_model.style_lora STYLE --work DIR`.

`striped` draws a stripe across each object, `soft` draws everything in soft colours. The captions
do not name the style. The LoRA changes the UNet's attention and convolutions. In some steps it has
half of its scale, and the images have half of the style.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from sdexport.demo_model import LORA_DIR, MODEL_DIR, dataset, styles
from sdexport.demo_model.adapter_training import AdapterExamples, Outlines
from sdexport.demo_model.architecture import use_plain_attention
from sdexport.demo_model.dataset import Scene
from sdexport.demo_model.noisy_latents import weighted_error
from sdexport.demo_model.outline_controlnet import guidance
from sdexport.demo_model.training import Trainer, add_common_arguments, read_model, seeded

RANK = 8
STEPS = {"striped": 11000, "soft": 400}
STRONGER = 1.2
"""The amount of the style `striped` in most training images, see training_amount: the VAE softens
stripes, those of small objects most."""
HALF_SHARE = 0.3
"""The share of the steps at scale 0.5."""
GUIDED_SHARE = 0.6
"""The share of the steps with the ControlNet, if it is given."""
STYLED_CELLS = 64.0
"""The cells of the latents that the style changes count as many more than they are, together."""
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_out")
"""Layers of the UNet that the LoRA changes, by the end of their names."""


def main() -> None:
    """Train, or resume from the last checkpoint, and write the LoRA in half precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m sdexport.demo_model.style_lora"
    )
    parser.add_argument("style", choices=styles.STYLES)
    add_common_arguments(parser, LORA_DIR)
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="the demo model")
    parser.add_argument(
        "--controlnet",
        type=Path,
        help="what outline_controlnet leaves in its --work: the style is learned with it too",
    )
    parser.add_argument("--scenes", type=int, default=4096)
    parser.add_argument("--steps", type=int, help="by default the style's")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    layers = {name: weight.cpu().half().contiguous() for name, weight in train(args).items()}
    StableDiffusionPipeline.save_lora_weights(
        args.output, unet_lora_layers=layers, weight_name=f"{args.style}.safetensors"
    )


def train(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Train the LoRA; returns its averaged weights by their names in PEFT."""
    torch.manual_seed(args.seed)
    vae, unet, text_encoder = (m.to(args.device).eval() for m in read_model(args.model))
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LAYERS), init_lora_weights=True)
    )

    def examples_of(scale: float) -> AdapterExamples:
        def image_of(scene: Scene) -> np.ndarray:
            amount = scale * training_amount(scene, args.style)
            return styles.render_in_style(scene, args.style, amount)

        return AdapterExamples(
            args.work / f"{args.style}_{scale:g}_latents.pt",
            args.model,
            vae,
            count=args.scenes,
            seed=(args.seed, 8),
            image_of=image_of,
        )

    examples = {scale: examples_of(scale) for scale in (0.5, 1.0)}
    size, scenes = unet.config.sample_size, examples[1.0].scenes
    weights = torch.stack([cell_weights(scene, args.style, size) for scene in scenes])
    guide = Guide(args.controlnet, scenes).to(args.device) if args.controlnet else None
    factors = nn.ModuleDict({"unet": Factors(unet)}).to(args.device)
    steps = args.steps or STEPS[args.style]
    trainer = Trainer(args.work / f"{args.style}.pt", factors, peak=2e-3, ends=(steps,))

    def loss_of(step: int) -> tuple[torch.Tensor, str]:
        rng = seeded(args.seed, 9, step)
        scale = 0.5 if rng.random() < HALF_SHARE else 1.0
        guided = rng.random() < GUIDED_SHARE
        unet.set_adapters("default", scale)
        numbers, batch = examples[scale].draw(rng)
        sample, timesteps = batch.sample.to(args.device), batch.timesteps.to(args.device)
        with torch.no_grad():
            hidden = text_encoder(batch.input_ids.to(args.device)).last_hidden_state
        with torch.autocast(args.device, torch.bfloat16):
            residuals = guide(sample, timesteps, hidden, numbers) if guide and guided else {}
            predicted = unet(sample, timesteps, hidden, **residuals).sample
        loss = weighted_error(predicted.float().cpu(), batch, cells=weights[numbers])
        return loss, f"loss {loss.item():.4f}"

    factors.load_state_dict(trainer.run(loss_of).state_dict())
    return get_peft_model_state_dict(unet)


class Guide(nn.Module):
    """The ControlNet that outline_controlnet trained, and the outlines of scenes for it."""

    def __init__(self, folder: Path, scenes: Sequence[Scene]) -> None:
        super().__init__()
        controlnet = ControlNetModel.from_pretrained(folder, torch_dtype=torch.float32)
        use_plain_attention(controlnet)
        self.controlnet = controlnet.eval().requires_grad_(False)
        self._outlines = Outlines(scenes)

    @torch.no_grad()
    def forward(
        self,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        hidden: torch.Tensor,
        numbers: np.ndarray,
    ) -> dict[str, Any]:
        """What it adds to the features of the UNet, for scenes by their numbers; see guidance."""
        outlines = self._outlines.draw(numbers).to(sample.device)
        return guidance(self.controlnet, sample, timesteps, hidden, outlines)


def training_amount(scene: Scene, style: str) -> float:
    """The amount of a style in a training image at scale 1; see styles.style_amount.

    Stripes are drawn stronger, if each of them still differs from the background by half as much as
    the rest of its object.
    """
    if style != "striped":
        return 1.0
    for shape in scene.shapes:
        other = styles.stripe_colour(shape.colour, scene.background)
        away = [
            np.linalg.norm(np.subtract(colour, scene.background))
            for colour in (styles.blend(shape.colour, other, STRONGER), shape.colour)
        ]
        if away[0] < away[1] / 2:
            return 1.0
    return STRONGER


def cell_weights(scene: Scene, style: str, size: int) -> torch.Tensor:
    """How much the error counts in each cell of a scene's latents: (1, size, size) float32."""
    plain, styled = dataset.render(scene), styles.render_in_style(scene, style)
    changed = torch.from_numpy((plain != styled).any(axis=-1)).float()
    shares = nn.functional.adaptive_avg_pool2d(changed[None], size)
    return 1 + STYLED_CELLS * shares / shares.sum()


class Factors(nn.Module):
    """The LoRA's factors in a UNet, as a module of their own for the optimiser."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.weights = nn.ParameterList(w for w in unet.parameters() if w.requires_grad)


if __name__ == "__main__":
    main()
