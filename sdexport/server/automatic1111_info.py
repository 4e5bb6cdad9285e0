"""The text `info` of AUTOMATIC1111's responses, and what its png-info reads.

Source: Processed.js() in modules/processing.py of AUTOMATIC1111's web UI 1.10.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from PIL import Image

from sdexport.runtime.images.embedded_text import JSON_KEY, TEXT_KEY, embedded_texts
from sdexport.runtime.images.infotext import HASH_DIGITS
from sdexport.runtime.images.parameters import Parameters
from sdexport.runtime.images.read_infotext import settings_pairs
from sdexport.runtime.version import __version__

_NOT_ITEMS = (TEXT_KEY, JSON_KEY, "XML:com.adobe.xmp")


def info(
    fields: Mapping[str, Any],
    parameters: Sequence[Parameters],
    *,
    seed: int,
    subseed: int,
    began: datetime,
    model: str,
    sha256: str | None,
    clip_skip: int,
) -> str:
    """What AUTOMATIC1111 says about the images of a request, as JSON.

    Args:
      fields: of the request, checked. parameters: of each image that was generated.
      seed, subseed: of the first image. began: when the request arrived.
      model: its name. sha256: of its manifest.
    """
    count = len(parameters)
    first = parameters[0] if parameters else None
    strength = first.strength if first else None
    return json.dumps(
        {
            "prompt": fields["prompt"],
            "all_prompts": [fields["prompt"]] * count,
            "negative_prompt": fields["negative_prompt"],
            "all_negative_prompts": [fields["negative_prompt"]] * count,
            "seed": seed,
            "all_seeds": [each.seed for each in parameters],
            "subseed": subseed,
            "all_subseeds": [subseed + i for i in range(count)],
            "subseed_strength": 0,
            "width": first.width if first else fields["width"],
            "height": first.height if first else fields["height"],
            "sampler_name": (first and first.sampler) or fields["sampler_name"],
            "cfg_scale": fields["cfg_scale"],
            "steps": fields["steps"],
            "batch_size": fields["batch_size"],
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": model,
            "sd_model_hash": sha256[:HASH_DIGITS] if sha256 else None,
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": strength,
            "extra_generation_params": {},
            "index_of_first_image": 0,
            "infotexts": [str(each) for each in parameters],
            "styles": [],
            "job_timestamp": began.strftime("%Y%m%d%H%M%S"),
            "clip_skip": clip_skip,
            "is_using_inpainting_conditioning": False,
            "version": f"sdexport {__version__}",
        }
    )


def png_info(image: Image.Image) -> dict[str, Any]:
    """The settings in an image: their text, other texts of the file, and each setting by name."""
    try:
        text = embedded_texts(image)[0] or ""
    except ValueError:  # of another program
        text = ""
    items = {
        key: value
        for key, value in image.info.items()
        if isinstance(key, str) and isinstance(value, str) and key not in _NOT_ITEMS
    }
    return {"info": text, "items": items, "parameters": settings_pairs(text)}
