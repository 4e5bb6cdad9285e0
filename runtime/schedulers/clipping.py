"""Limits on the clean latents that a step predicts."""

from __future__ import annotations

import numpy as np

from sdexport.runtime.schedulers.scheduler_config import SchedulerConfig


def clip_original(original: np.ndarray, scratch: np.ndarray, config: SchedulerConfig) -> None:
    """Threshold or clip clean latents in place, as the configuration says.

    Args:
      original: (B, C, H/8, W/8) float32 or float64, changed in place.
      scratch: the same shape and dtype; its values are lost.
    Source: dynamic thresholding: Imagen, arXiv 2205.11487, section 2.3.
    """
    if config.thresholding:
        flat, sizes = original.reshape(len(original), -1), scratch.reshape(len(original), -1)
        np.abs(flat, out=sizes)
        ratio = config.dynamic_thresholding_ratio
        highest = np.quantile(sizes, ratio, axis=1, keepdims=True, overwrite_input=True)
        highest = np.clip(highest, 1.0, config.sample_max_value).astype(flat.dtype)
        np.clip(flat, -highest, highest, out=flat)
        flat /= highest
    elif config.clip_sample:
        np.clip(original, -config.clip_sample_range, config.clip_sample_range, out=original)
