"""The demo model: a complete Stable Diffusion model, small enough for this repository.

It generates coloured shapes, alone or in pairs, at 128x128 pixels. `dataset` draws the training
images and writes their captions, `train` produced the checkpoint, `evaluate` measures how well a
package follows its prompts. This module needs nothing but the standard library.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
"""The checkpoint, a diffusers folder with fp16 weights. Wheels do not contain it."""
PACKAGE_DIR = Path(__file__).parent / "package"
"""The package in fp16 that `sdexport demo` uses. It takes LoRAs and ControlNets."""
CONTROLNET_PACKAGE_DIR = Path(__file__).parent / "controlnet_package"
"""The package in int8 of a ControlNet that follows outlines."""
LORA_DIR = Path(__file__).parent / "loras"
"""The LoRAs, one file for each style."""
