"""The inputs and outputs of the pipeline's model, and arguments of a pipeline call from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.json_text import parse_json
from sdexport.engines.messages import one_line
from sdexport.triton.model_config import ANY, ConfigTensor, ModelConfig

JSON = "json"
"""A text that holds a JSON value."""
_ONE, _PAIR, _MANY = (1,), (2,), (ANY,)
_LONGEST_JSON = 1_000_000
"""Characters."""


@dataclass(frozen=True)
class RequestInput:
    """An input of the pipeline's model: an argument of a pipeline call.

    kind: its dtype, or JSON. dims: of a row.
    """

    name: str
    kind: str
    dims: tuple[int, ...] = _ONE

    def tensor(self) -> ConfigTensor:
        """As config.pbtxt has it; the prompt alone is required."""
        dtype = "string" if self.kind == JSON else self.kind
        return ConfigTensor(self.name, dtype, self.dims, optional=self.name != "prompt")

    def value(self, row: np.ndarray) -> Any:
        """The argument that a row holds, of the shape `dims`.

        Raises: InvalidArgumentError: not UTF-8, not JSON, or an empty image.
        """
        if self.kind == "uint8":
            if not row.size:
                raise InvalidArgumentError(f"{self.name}: empty array {row.shape}")
            return Image.fromarray(np.ascontiguousarray(row))
        if self.dims == _ONE:
            found = row.reshape(-1)[0]
            if self.kind == "string":
                return self._text(found)
            return self._json(found) if self.kind == JSON else found.item()
        return row.tolist()

    def _text(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise InvalidArgumentError(f"{self.name} is not UTF-8") from None

    def _json(self, value: Any) -> Any:
        text = self._text(value)
        if len(text) > _LONGEST_JSON:
            raise InvalidArgumentError(f"{self.name}: more than {_LONGEST_JSON:,} characters")
        try:
            return parse_json(text, strict=True)
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"{self.name} is not JSON: {one_line(error, 200)}") from None


_TEXTS = (
    *("negative_prompt", "prompt_2", "negative_prompt_2", "schedule", "resize_mode"),
    *("prompt_style", "noise_device"),
)
_INTEGERS = (
    *("width", "height", "num_inference_steps", "original_inference_steps"),
    *("padding_mask_crop", "clip_skip"),
)
_NUMBERS = (
    *("guidance_scale", "guidance_rescale", "strength", "mask_blur", "eta"),
    *("denoising_start", "denoising_end", "aesthetic_score", "negative_aesthetic_score"),
)
_FLAGS = ("mask_invert", "paste_back", "prompt_weights", "safety")
_SIZES = (
    *("original_size", "crops_coords_top_left", "target_size", "negative_original_size"),
    *("negative_crops_coords_top_left", "negative_target_size"),
)
INPUTS = (
    RequestInput("prompt", "string"),
    *(RequestInput(name, "string") for name in _TEXTS),
    RequestInput("seed", "int64"),
    *(RequestInput(name, "int32") for name in _INTEGERS),
    *(RequestInput(name, "float64") for name in _NUMBERS),
    *(RequestInput(name, "bool") for name in _FLAGS),
    RequestInput("image", "uint8", (ANY, ANY, 3)),
    RequestInput("mask_image", "uint8", (ANY, ANY)),
    RequestInput("timesteps", "float64", _MANY),
    RequestInput("sigmas", "float64", _MANY),
    RequestInput("guidance_interval", "float64", _PAIR),
    RequestInput("cache_interval", "float64", _PAIR),
    *(RequestInput(name, "int32", _PAIR) for name in _SIZES),
    RequestInput("scheduler", "string"),
    RequestInput("scheduler_options", JSON),
    RequestInput("token_embeds", JSON),
)
"""Numbers are float64, so that 0.7 is the 0.7 of Python."""
NOT_INPUTS = {
    "num_images_per_prompt": "each row of the batch is one image",
    "loras": "merge LoRAs when the package is exported",
    "controlnets": "Triton's pipeline takes no adapters",
    "t2i_adapters": "Triton's pipeline takes no adapters",
    "ip_adapters": "Triton's pipeline takes no adapters",
}
"""Arguments of `sdexport serve` that the model does not have, and what to do instead."""
OUTPUTS = (
    ConfigTensor("image", "uint8", (ANY, ANY, 3)),
    ConfigTensor("png", "string", _ONE),
    ConfigTensor("parameters", "string", _ONE),
    ConfigTensor("seed", "int64", _ONE),
    ConfigTensor("nsfw_content_detected", "bool", _ONE),
    ConfigTensor("warnings", "string", _ONE),
)


def pipeline_config(name: str, *, max_batch: int, queue_delay: int, instances: int) -> ModelConfig:
    """The configuration of the pipeline's model."""
    return ModelConfig(
        name,
        "python",
        tuple(each.tensor() for each in INPUTS),
        OUTPUTS,
        max_batch_size=max_batch,
        queue_delay=queue_delay,
        instances=instances,
        kind="cpu",
    )


def arguments_of_rows(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The arguments of a pipeline call for each row of a request.

    Args:
      arrays: of the inputs that the request has, by name, each with the batch first.
    Raises: InvalidArgumentError: an input that the model does not have, a shape that is not that of
      its configuration, or a text that cannot be read.
    """
    known = {each.name: each for each in INPUTS}
    found: list[dict[str, Any]] = []
    for name, array in arrays.items():
        if name not in known:
            raise InvalidArgumentError(f"the model has no input {name:.80}")
        wanted = known[name].dims
        sizes = zip(wanted, array.shape[1:], strict=False)
        if array.ndim != len(wanted) + 1 or any(w not in (ANY, size) for w, size in sizes):
            raise InvalidArgumentError(
                f"{name}: expected the batch and {list(wanted)}, got {list(array.shape)}"
            )
        found = found or [{} for _ in range(len(array))]
        if len(array) != len(found):
            raise InvalidArgumentError(f"{name}: {len(array)} rows, others have {len(found)}")
        for row, arguments in zip(array, found, strict=True):
            arguments[name] = known[name].value(row)
    return found


def text_tensor(texts: list[bytes]) -> np.ndarray:
    """(B, 1) bytes, as Triton takes texts."""
    values = np.empty((len(texts), 1), dtype=object)
    for place, text in enumerate(texts):
        values[place, 0] = text
    return values


def json_text(value: Any) -> bytes:
    """A JSON value as a text."""
    return json.dumps(value).encode()
