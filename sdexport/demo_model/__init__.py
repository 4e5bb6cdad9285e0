"""The embedded demo model: a whole Stable Diffusion small enough to live in the repository.

It paints single and paired coloured shapes at 128x128. `dataset` draws the pictures and writes the
captions, `train` makes the weights in `model/`, `evaluate` judges what a package paints.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
"""The committed diffusers folder (fp16 safetensors)."""
