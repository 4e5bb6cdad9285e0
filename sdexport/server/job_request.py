"""The body of POST /v1/jobs: every setting of the library by its own name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Integer = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Texts = str | list[str]
Pair = Annotated[list[int], Field(min_length=2, max_length=2)]
Fractions = Annotated[list[Number], Field(min_length=2, max_length=2)]
Encoded = Annotated[str, Field(description="base64, or a data URL")]
Images = Encoded | list[Encoded]


class _Item(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    def given(self) -> dict[str, Any]:
        """The settings that were sent."""
        return self.model_dump(exclude_unset=True)


class LoraItem(_Item):
    """A LoRA of the server's folder."""

    name: str
    scale: Number = 1.0


class ControlNetItem(_Item):
    """A ControlNet that the server knows, and the image that it follows."""

    name: str
    image: Images
    scale: Number = 1.0
    start: Number = 0.0
    end: Number = 1.0
    guess_mode: bool = False
    mode: str | int | None = None


class T2IAdapterItem(_Item):
    """A T2I-Adapter that the server knows, and the image that it follows."""

    name: str
    image: Images
    scale: Number = 1.0
    factor: Number = 1.0


class IPAdapterItem(_Item):
    """An IP-Adapter that the server knows, and the images that it shows."""

    name: str
    images: Images
    scale: Number | list[Number] | dict[str, Any] = 1.0
    masks: Images | None = None


_EXAMPLES: list[JsonValue] = [
    {"prompt": "a red circle", "num_inference_steps": 8, "seed": 1},
    {
        "prompt": ["a red circle", "a blue star"],
        "negative_prompt": "green",
        "guidance_scale": 5,
        "scheduler": "dpm++_2m",
        "schedule": "karras",
        "seed": [1, 2],
        "previews": True,
    },
]


class JobRequest(BaseModel):
    """A request for images. Settings that are not sent have the library's defaults."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"examples": _EXAMPLES})

    model: str | None = Field(None, description="A name of GET /v1/server; default the first.")
    previews: bool = Field(False, description="Whether the job's events have previews.")
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Seconds after which the job fails if it is not done."
    )
    prompt: Texts
    negative_prompt: Texts | None = None
    prompt_2: Texts | None = None
    negative_prompt_2: Texts | None = None
    width: Integer | None = None
    height: Integer | None = None
    num_inference_steps: Integer | None = None
    timesteps: list[Number] | None = None
    sigmas: list[Number] | None = None
    original_inference_steps: Integer | None = None
    denoising_start: Number | None = None
    denoising_end: Number | None = None
    guidance_scale: Number | None = None
    guidance_rescale: Number | None = None
    guidance_interval: Fractions | None = None
    cache_interval: Fractions | None = None
    image: Images | None = None
    strength: Number | None = None
    mask_image: Images | None = None
    mask_blur: Number | None = None
    mask_invert: bool | None = None
    paste_back: bool | None = None
    padding_mask_crop: Integer | None = None
    resize_mode: str | None = None
    num_images_per_prompt: Integer | None = None
    seed: Integer | list[Integer] | None = Field(
        None, description="-1 and none stand for a random one, which the result names."
    )
    noise_device: str | None = None
    prompt_style: str | None = None
    prompt_weights: bool | None = None
    clip_skip: Integer | None = None
    token_embeds: dict[str, dict[str, Number]] | None = None
    loras: list[LoraItem] | None = None
    controlnets: list[ControlNetItem] | None = None
    t2i_adapters: list[T2IAdapterItem] | None = None
    ip_adapters: list[IPAdapterItem] | None = None
    original_size: Pair | None = None
    crops_coords_top_left: Pair | None = None
    target_size: Pair | None = None
    negative_original_size: Pair | None = None
    negative_crops_coords_top_left: Pair | None = None
    negative_target_size: Pair | None = None
    aesthetic_score: Number | None = None
    negative_aesthetic_score: Number | None = None
    scheduler: str | dict[str, Any] | None = None
    schedule: str | None = None
    scheduler_options: dict[str, Any] | None = None
    eta: Number | None = None
    safety: bool | None = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of a pipeline call that were sent; images are texts still."""
        own = {"model", "previews", "timeout"}
        found: dict[str, Any] = {}
        for name in self.model_fields_set - own:
            value = getattr(self, name)
            if name == "loras" and value is not None:
                value = [(each.name, each.scale) for each in value]
            elif isinstance(value, list):
                value = [each.given() if isinstance(each, _Item) else each for each in value]
            found[name] = value
        return found | (self.model_extra or {})
