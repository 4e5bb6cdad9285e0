"""Classifier-free guidance. Source: Ho and Salimans 2022, arXiv 2207.12598, eq. 6."""

from __future__ import annotations

import numpy as np


def is_guided(guidance_scale: float) -> bool:
    """Whether an unconditional pass is needed: at scale 1 it would cancel out.

    Below 1 there is none either, as in diffusers.
    """
    return guidance_scale > 1


def combine(noise_pred: np.ndarray, guidance_scale: float) -> np.ndarray:
    """Move the prediction away from the unconditional one.

    Args:
      noise_pred: (2B, C, H, W), the unconditional half first.
    Returns: (B, C, H, W), same dtype.
    """
    noise_pred_uncond, noise_pred_text = np.split(noise_pred, 2)
    guided: np.ndarray = noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)
    return guided
