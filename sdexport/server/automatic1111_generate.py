"""AUTOMATIC1111's txt2img and img2img: from a request's fields to jobs, and on to images."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import plain, shown
from sdexport.runtime.adapters.lora_tags import TAG
from sdexport.runtime.text.prompt_parts import tags
from sdexport.server import automatic1111_controlnet as controlnet
from sdexport.server.automatic1111_fields import checked_fields
from sdexport.server.automatic1111_images import image_arguments
from sdexport.server.automatic1111_info import info
from sdexport.server.automatic1111_options import CHECKPOINT, FORMATS, NOISE_DEVICES, Options
from sdexport.server.automatic1111_requests import RunningRequest, RunningRequests
from sdexport.server.automatic1111_sampler import sampler_arguments
from sdexport.server.image_request import ImageRequest
from sdexport.server.image_service import ImageService
from sdexport.server.input_images import RequestImages
from sdexport.server.jobs import Job
from sdexport.server.output_images import as_base64, encoded_image
from sdexport.server.server_errors import JobCancelledError
from sdexport.server.size_limits import check_target_size

_HIDDEN = ("init_images", "mask")
"""Fields that the response repeats only if include_init_images says so."""
_SEEDS = 2**32


@dataclass(frozen=True)
class Plan:
    """A request that was checked.

    fields: with defaults. options: of this request. requests: one for each iteration. seed,
    subseed: of the first image. parameters: what the response repeats.
    """

    fields: Mapping[str, Any]
    options: Mapping[str, Any]
    requests: Sequence[ImageRequest]
    seed: int
    subseed: int
    parameters: Mapping[str, Any]


def planned(
    service: ImageService, options: Options, body: Any, images: RequestImages, *, image: bool
) -> Plan:
    """Check a request for txt2img or img2img.

    Args:
      images: decodes its images. image: whether it is for img2img.
    Raises: InvalidArgumentError: a field or option that is unknown, of another type or not
      supported; an image that cannot be read. QueueFullError: see RequestImages.read.
    """
    fields = checked_fields(body, image=image)
    overrides = fields["override_settings"]
    values = options.changed(overrides, keep=False)
    _check_tags(fields, service)
    _check_count(fields, service)
    arguments = _arguments(fields, values)
    check_target_size(fields["width"], fields["height"], service.settings)
    if image:
        arguments |= image_arguments(fields, images)
    units = controlnet.units(fields["alwayson_scripts"])
    if units:
        first = arguments.get("image")
        arguments["controlnets"] = controlnet.controlnet_arguments(
            units,
            service.names.control_types,
            (fields["width"], fields["height"]),
            images,
            image=first[0] if isinstance(first, list) else first,
            cropped="padding_mask_crop" in arguments,
        )
    seed, subseed = (_drawn(fields[name]) for name in ("seed", "subseed"))
    requests = _requests(fields, arguments, values[CHECKPOINT], seed)
    if not fields["override_settings_restore_afterwards"]:
        options.changed(overrides)
    repeated = {**fields, **body}
    if not fields.get("include_init_images"):
        repeated |= {name: None for name in _HIDDEN if name in repeated}
    return Plan(fields, values, requests, seed, subseed, repeated)


async def generate(
    service: ImageService, running: RunningRequests, plan: Plan, request_id: str = ""
) -> dict[str, Any]:
    """Run the jobs of a request, and make the response.

    Images of jobs that were interrupted or skipped are missing in it.

    Raises: see ImageService.submit and ImageService.result.
    """
    previews = bool(plan.options["live_previews_enable"])
    with running.running(len(plan.requests)) as request:
        try:
            for each in plan.requests:
                job = service.submit(each, previews=previews, request_id=request_id)
                request.jobs.append(job)
            done = [job for job in request.jobs if await _is_done(service, request, job)]
        finally:
            for job in request.jobs:
                if not job.is_over:
                    service.queue.cancel(job)
    images = [image for job in done for image in job.images if plan.fields["send_images"]]
    parameters = [each for job in done for each in job.parameters]
    model = service.models.model(plan.requests[0].model)
    return {
        "images": await asyncio.to_thread(_encoded, images, plan.options),
        "parameters": plan.parameters,
        "info": info(
            plan.fields,
            parameters,
            seed=plan.seed,
            subseed=plan.subseed,
            began=request.began,
            model=model.name,
            sha256=model.package.digest,
            clip_skip=plan.options["CLIP_stop_at_last_layers"],
        ),
    }


async def _is_done(service: ImageService, request: RunningRequest, job: Job) -> bool:
    """Wait for a job; False if it was interrupted or skipped."""
    try:
        await service.result(job)
    except JobCancelledError:
        if request.interrupted or job.id in request.skipped:
            return False
        raise
    return True


def _arguments(fields: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call that do not depend on images and adapters."""
    found = {
        "prompt": fields["prompt"],
        "negative_prompt": fields["negative_prompt"],
        "prompt_style": "automatic1111",
        "num_inference_steps": fields["steps"],
        "guidance_scale": float(fields["cfg_scale"]),
        "width": fields["width"],
        "height": fields["height"],
        "noise_device": NOISE_DEVICES[options["randn_source"]],
        **sampler_arguments(fields, options),
    }
    layers = options["CLIP_stop_at_last_layers"] - 1
    return found | ({"clip_skip": layers} if layers else {})


def _requests(
    fields: Mapping[str, Any], arguments: Mapping[str, Any], model: str, seed: int
) -> list[ImageRequest]:
    """One request for each iteration; each image has a seed one higher than the one before."""
    image = arguments.get("image")
    count = len(image) if isinstance(image, list) else fields["batch_size"]
    batch: dict[str, Any] = {"num_images_per_prompt": count}
    if isinstance(image, list):
        batch = {name: [arguments[name]] * count for name in ("prompt", "negative_prompt")}
    return [
        ImageRequest(
            model,
            {**arguments, **batch, "seed": [seed + first + i for i in range(count)]},
        )
        for first in range(0, fields["n_iter"] * count, count)
    ]


def _drawn(seed: int) -> int:
    """A seed, a random one for -1."""
    return secrets.randbelow(_SEEDS) if seed == -1 else seed


def _check_tags(fields: Mapping[str, Any], service: ImageService) -> None:
    """Raises: InvalidArgumentError: a tag that would be left out of a prompt without effect."""
    for tag in tags(fields["negative_prompt"]):
        raise InvalidArgumentError(
            f"negative_prompt: {plain(tag)} has no effect there; name it in the prompt"
        )
    for tag in tags(fields["prompt"]):
        if TAG.fullmatch(tag) is None:
            raise InvalidArgumentError(f"prompt: {plain(tag)} is not supported, only LoRAs are")
        if not service.names.loras:
            raise InvalidArgumentError(
                f"prompt: {plain(tag)}: this server has no LoRAs (--lora-dir)"
            )


def _check_count(fields: Mapping[str, Any], service: ImageService) -> None:
    """Raises: InvalidArgumentError: more images than a request may have."""
    sources = fields.get("init_images") or ()
    each, most = max(fields["batch_size"], len(sources)), service.settings.max_images
    if len(sources) > 1 and fields["batch_size"] not in (1, len(sources)):
        raise InvalidArgumentError(
            f"init_images: got {len(sources)} images, and batch_size {fields['batch_size']}"
        )
    if each * fields["n_iter"] > most:
        raise InvalidArgumentError(
            f"batch_size and n_iter: {shown(each * fields['n_iter'])} images; a request has at "
            f"most {most}"
        )


def _encoded(images: Sequence[Image.Image], options: Mapping[str, Any]) -> list[str]:
    """Images as base64 of files in the format that the options say."""
    format_ = FORMATS[options["samples_format"]]
    lossless = format_ == "webp" and options["webp_lossless"]
    quality = None if format_ == "png" or lossless else options["jpeg_quality"]
    if not options["enable_pnginfo"]:
        images = [_without_settings(image) for image in images]
    return [
        as_base64(encoded_image(image, format_, quality, lossless=lossless)) for image in images
    ]


def _without_settings(image: Image.Image) -> Image.Image:
    plain_image = Image.new(image.mode, image.size)
    plain_image.paste(image)
    return plain_image
