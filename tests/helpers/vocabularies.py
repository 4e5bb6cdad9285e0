"""Vocabularies of CLIP: the demo model's, and the real one where it is on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from sdexport.demo_model import MODEL_DIR

REAL = Path(
    os.environ.get("CLIP_TOKENIZER", Path(__file__).parents[3] / "shared" / "clip-tokenizer")
)
VOCABULARIES = {"demo": MODEL_DIR / "tokenizer", "real": REAL}
PRESENT = [name for name, folder in VOCABULARIES.items() if (folder / "vocab.json").is_file()]
