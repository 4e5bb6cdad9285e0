"""AUTOMATIC1111's options: those that the server has, safe to change from several requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown

CHECKPOINT = "sd_model_checkpoint"
NOISE_DEVICES = {"GPU": "cuda", "NV": "cuda", "CPU": "cpu"}
"""Value of randn_source -> the argument `noise_device`."""
FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
"""Value of samples_format -> the name of the format."""


def _one_of(*values: Any) -> Callable[[Any], bool]:
    # 1 is no True here
    return lambda value: any(type(value) is type(each) and value == each for each in values)


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value <= high


def _same_number(number: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and value == number


OPTIONS: Mapping[str, tuple[Any, Callable[[Any], bool], str]] = {
    "sd_vae": ("Automatic", _one_of("Automatic", "None"), "a package has its own VAE"),
    "sd_lora": ("None", _one_of("None", ""), "name LoRAs in the prompt"),
    "sd_hypernetwork": ("None", _one_of("None", ""), "hypernetworks are not supported"),
    "CLIP_stop_at_last_layers": (1, _whole(1, 12), "1 to 12"),
    "randn_source": ("GPU", _one_of(*NOISE_DEVICES), "GPU, NV or CPU"),
    "eta_ddim": (0.0, _number(0, 1), "0 to 1"),
    "eta_ancestral": (1.0, _same_number(1), "samplers that add noise have 1"),
    "eta_noise_seed_delta": (0, _same_number(0), "another noise is not supported"),
    "initial_noise_multiplier": (1.0, _same_number(1), "other noise is not supported"),
    "emphasis": ("Original", _one_of("Original"), "other emphasis is not supported"),
    "comma_padding_backtrack": (20, _whole(20, 20), "the limit is 20"),
    "sdxl_crop_top": (0, _whole(0, 0), "use the native API"),
    "sdxl_crop_left": (0, _whole(0, 0), "use the native API"),
    "upcast_attn": (False, _one_of(False), "the package decides"),
    "token_merging_ratio": (0.0, _same_number(0), "token merging is not supported"),
    "token_merging_ratio_img2img": (0.0, _same_number(0), "token merging is not supported"),
    "img2img_color_correction": (False, _one_of(False), "it is not supported"),
    "img2img_fix_steps": (False, _one_of(False), "strength shortens the steps, as in diffusers"),
    "img2img_background_color": ("#ffffff", _one_of("#ffffff"), "it is white"),
    "inpainting_mask_weight": (1.0, _same_number(1), "it is for other inpainting models"),
    "live_previews_enable": (True, _one_of(True, False), "true or false"),
    "show_progress_every_n_steps": (1, _whole(-1, 1000), "-1 to 1000"),
    "samples_format": ("png", _one_of(*FORMATS), "png, jpg or webp"),
    "jpeg_quality": (80, _whole(1, 100), "1 to 100"),
    "webp_lossless": (False, _one_of(True, False), "true or false"),
    "enable_pnginfo": (True, _one_of(True, False), "true or false"),
    "samples_save": (False, _one_of(False), "images are not saved on the server"),
    "grid_save": (False, _one_of(False), "images are not saved on the server"),
    "return_grid": (False, _one_of(False), "there are no grids"),
}
"""Option -> its default, what values it may have, and what to say of others."""


class Options:
    """The options of the server; each change is applied whole or not at all.

    Args:
      find_model: the name of the model that a client means by a title, a name or a hash.
      title: of a model, for clients.
      default_model: its name.
    """

    def __init__(
        self,
        find_model: Callable[[object], str],
        title: Callable[[str], str],
        default_model: str,
    ) -> None:
        self._find_model, self._title = find_model, title
        self._values = {name: default for name, (default, *_) in OPTIONS.items()}
        self._values[CHECKPOINT] = default_model
        self._lock = threading.Lock()

    def changed(self, changes: Mapping[str, Any], *, keep: bool = True) -> dict[str, Any]:
        """All options after changes, with the model's name under CHECKPOINT.

        Args:
          changes: values by name. keep: False leaves the server's options as they are.
        Raises: InvalidArgumentError: an unknown option, or a value that it cannot have.
        """
        checked = {name: self._checked(name, value) for name, value in changes.items()}
        checked.pop("sd_checkpoint_hash", None)
        with self._lock:
            values = {**self._values, **checked}
            if keep:
                self._values = values
            return dict(values)

    def shown(self, hash_of: Callable[[str], str | None]) -> dict[str, Any]:
        """All options as GET shows them."""
        with self._lock:
            values = dict(self._values)
        model = values[CHECKPOINT]
        return values | {CHECKPOINT: self._title(model), "sd_checkpoint_hash": hash_of(model)}

    def _checked(self, name: str, value: Any) -> Any:
        if name == CHECKPOINT:
            return self._find_model(value)
        if name == "sd_checkpoint_hash":  # GET shows it
            self._find_model(value)
            return value
        if name not in OPTIONS:
            raise InvalidArgumentError(
                f"option {shown(name)} is not supported; GET /sdapi/v1/options has all"
            )
        _, allowed, why = OPTIONS[name]
        if isinstance(value, float) and value.is_integer() and allowed(int(value)):
            value = int(value)
        if not allowed(value):
            raise InvalidArgumentError(f"option {name} cannot be {shown(value)}: {why}")
        return value
