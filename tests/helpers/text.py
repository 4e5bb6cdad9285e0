"""The demo model's tokenizer, and a text encoder whose hidden states are known."""

from __future__ import annotations

import functools

import numpy as np

from sdexport import ClipTokenizer
from sdexport.demo_model import MODEL_DIR


@functools.cache
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer.from_folder(MODEL_DIR / "tokenizer")


def text_encoder(input_ids: np.ndarray) -> np.ndarray:
    """Hidden states that identify row and token, (N, 77, 3) float32."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((tokenizer().vocab_size, 3)).astype(np.float32) + 0.3
    places = np.linspace(0, 1, input_ids.shape[1], dtype=np.float32)[:, None]
    return table[input_ids] + places
