"""The demo model with a small random safety checker that flags about half of its images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from click.testing import CliRunner

from sdexport import exporter, load_pipeline
from sdexport.cli import main
from sdexport.demo_model import MODEL_DIR
from sdexport.runtime.models.components import SAFETY_CHECKER
from tests.helpers.linked_folder import linked_folder
from tests.helpers.low_precision import graphs_of

SIDE = 32
PROMPTS = [
    "a red circle",
    "a small yellow star on a blue background",
    "a large green triangle",
    "a white square on a black background",
]
CALL: dict[str, Any] = {"prompt": PROMPTS, "num_inference_steps": 4, "guidance_scale": 5.0}
SEED = 3
DETECTED_CONCEPT = 5
INDEX = {
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "requires_safety_checker": True,
    "_diffusers_version": "0.30.0",
}


def random_checker(seed: int = 0, *, side: int = SIDE) -> Any:
    """A small safety checker with random weights, which flags nothing."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    torch.manual_seed(seed)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**small, **heads, "image_size": side, "patch_size": 8},
        text_config={**small, **heads},
        projection_dim=24,
    )
    checker = StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():
        for name, weight in checker.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
            elif name.endswith("embeds_weights"):
                weight.fill_(1.5)
    return checker


def add_safety_checker(folder: Path, checker: Any) -> Path:
    """Write a safety checker and its feature extractor into a checkpoint's folder."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = checker.config.vision_config.image_size
    checker.save_pretrained(folder / "safety_checker")
    processor = CLIPImageProcessorPil(size=side, crop_size=side)
    processor.save_pretrained(folder / "feature_extractor")
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()  # it may be a link
    path.write_text(json.dumps({**index, **INDEX}), encoding="utf-8")
    return folder


def cosines(checker: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As diffusers computes them from (B, H, W, 3) uint8: (B, 17) and (B, 3) float32."""
    from diffusers.pipelines.stable_diffusion.safety_checker import cosine_distance

    with torch.no_grad():
        embeds = checker.visual_projection(checker.vision_model(clip_input(checker, images))[1])
        found = [
            cosine_distance(embeds, each).numpy()
            for each in (checker.concept_embeds, checker.special_care_embeds)
        ]
    return found[0], found[1]


def clip_input(checker: Any, images: np.ndarray) -> torch.Tensor:
    """The input of the checker as diffusers makes it, from (B, H, W, 3) uint8."""
    from PIL import Image
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = checker.config.vision_config.image_size
    processor = CLIPImageProcessorPil(size=side, crop_size=side)
    found = processor([Image.fromarray(each) for each in images], return_tensors="pt")
    return found["pixel_values"]


def make(plain: Path, folder: Path) -> None:
    """Write the checkpoint and the package of it, to `checkpoint` and `package` in a folder.

    Args:
      plain: the demo model's package in float32.
    """
    checker = random_checker()
    with load_pipeline(plain, verify=False) as pipe:
        images = np.stack([np.asarray(each) for each in pipe(**CALL, seed=SEED).images])
    found = np.sort(cosines(checker, images)[0][:, DETECTED_CONCEPT])
    gaps = np.diff(found)
    assert gaps.max() > 0.01, "no threshold separates these images; take others"
    widest = int(gaps.argmax())
    with torch.no_grad():
        checker.concept_embeds_weights[DETECTED_CONCEPT] = float(found[widest : widest + 2].mean())
    checkpoint = add_safety_checker(linked_folder(MODEL_DIR, folder / "checkpoint"), checker)
    with graphs_but_checker(plain):
        command = ["export", str(checkpoint), str(folder / "package")]
        result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    (folder / "printed.txt").write_text(result.stdout, encoding="utf-8")


@contextmanager
def graphs_but_checker(plain: Path) -> Iterator[None]:
    """Have exports take the graphs of the `plain` package for all but the safety checker."""
    real = exporter.trace
    with graphs_of(plain):
        copied: Any = exporter.trace

        def trace(part: Any, *arguments: Any, **keywords: Any) -> Any:
            function = real if part.name == SAFETY_CHECKER.name else copied
            return function(part, *arguments, **keywords)

        with mock.patch("sdexport.exporter.trace", trace):
            yield
