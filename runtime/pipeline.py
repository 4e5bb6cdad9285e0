"""Text to image, image to image and inpainting: encode, denoise, decode."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Never

import numpy as np

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime import checks, inputs, prompt_arguments
from sdexport.runtime.adapters.call_adapters import CallAdapters, DenoiserAdapter
from sdexport.runtime.adapters.call_loras import (
    LoraArgument,
    LorasOfPrompts,
    loras_in_prompts,
    loras_of_call,
)
from sdexport.runtime.adapters.controlled_images import ControlledImages
from sdexport.runtime.adapters.controlnet_argument import ControlNet, checked_controlnets
from sdexport.runtime.adapters.followed_images import FollowedImages
from sdexport.runtime.adapters.image_adapter_arguments import (
    IPAdapter,
    T2IAdapter,
    checked_ip_adapters,
    checked_t2i_adapters,
)
from sdexport.runtime.call_arguments import check_output, reject_unknown
from sdexport.runtime.denoise import DenoiseStep
from sdexport.runtime.generation import CheckedCall, generate
from sdexport.runtime.guidance import Guidance, GuidanceFunction
from sdexport.runtime.images.control_images import Crop
from sdexport.runtime.images.inpainting import InpaintOptions
from sdexport.runtime.images.loading import ImageSources
from sdexport.runtime.models.conditioning import SIZE_ARGUMENTS, SizeConditioning
from sdexport.runtime.noise.image_noise import Generators, ImageNoise, Seeds
from sdexport.runtime.pipeline_stages import PipelineStages
from sdexport.runtime.reproduction import (
    arguments_like,
    differences,
    folder_of,
    other_engines,
    parameters_of,
    warn_of_differences,
)
from sdexport.runtime.result import Result
from sdexport.runtime.safety_checker import safety_of_call
from sdexport.runtime.scheduler_argument import SchedulerArgument
from sdexport.runtime.step_callback import StepCallback, StepCallbacks
from sdexport.runtime.text.prompt_embeds import Embeds
from sdexport.runtime.text.prompt_styles import style_name
from sdexport.runtime.text.token_embeds import TokenEmbeds
from sdexport.runtime.timestep_plan import ImageShare, plan_timesteps


class Pipeline(PipelineStages):
    """Generates images with a package; usable from several threads, and a context manager.

    Args:
      package: a checked package.
      backend: one for all components, or {"unet": "openvino", "*": "auto"}; see
        component_backends.py.
      options: of the backends' sessions, used when components are first needed.
      sessions: components that are open already; the caller closes them.
      max_batch: images that a component processes at once; None processes all of them. Bounds the
        memory of a large batch and changes nothing else.
      vae_tile: side in pixels of the tiles in which the VAE processes larger images; None processes
        the whole image. Bounds memory; colors may shift a little from tile to tile.
      low_memory: keep one component in memory at a time; each is opened when it is needed.
      lora_dir: folder with the LoRAs that prompts name, as `<lora:style:0.8>`; see docs/lora.md.
      expected_images: how many are going to be generated; for a few, the backend "auto" prefers one
        that starts at once, see sdexport.engines.choose; for one, components are closed as soon as
        they have done their work. None for many.

    Example:
        >>> from sdexport import Package, Pipeline
        >>> with Pipeline(Package.load("package"), max_batch=1) as pipe:
        ...     latents = pipe("a red circle", num_inference_steps=2, seed=0).latents
        >>> latents.shape
        (1, 4, 16, 16)
    """

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        original_inference_steps: int | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_function: GuidanceFunction | None = None,
        cache_interval: tuple[float, float] | None = None,
        image: ImageSources | None = None,
        strength: float | None = None,
        mask_image: ImageSources | None = None,
        mask_blur: float = 0.0,
        mask_invert: bool = False,
        paste_back: bool = False,
        padding_mask_crop: int | None = None,
        resize_mode: str = "stretch",
        num_images_per_prompt: int = 1,
        seed: Seeds | None = None,
        generator: Generators | None = None,
        noise_device: str = "cpu",
        latents: np.ndarray | None = None,
        prompt_embeds: Embeds | None = None,
        negative_prompt_embeds: np.ndarray | None = None,
        pooled_prompt_embeds: np.ndarray | None = None,
        negative_pooled_prompt_embeds: np.ndarray | None = None,
        prompt_style: str | None = None,
        prompt_weights: bool = False,
        clip_skip: int | None = 0,
        token_embeds: TokenEmbeds | None = None,
        loras: Sequence[LoraArgument] | None = None,
        controlnets: Sequence[ControlNet] | None = None,
        t2i_adapters: Sequence[T2IAdapter] | None = None,
        ip_adapters: Sequence[IPAdapter] | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] = (0, 0),
        negative_target_size: tuple[int, int] | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        scheduler: SchedulerArgument | None = None,
        schedule: str | None = None,
        scheduler_options: Mapping[str, Any] | None = None,
        eta: float = 0.0,
        safety: bool = False,
        on_step: Callable[[DenoiseStep], object] | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **unknown: Never,
    ) -> Result:
        """Generate images.

        Args:
          prompt, negative_prompt: one text, or one for each image. Without a negative prompt SDXL
            takes zeros as negative embeddings, which is not the same as "".
          prompt_2, negative_prompt_2: for the second text encoder of SDXL; default the first's.
          height, width: pixels, multiples of the package's downscale (8); default the size of
            `image`, or else of the first control image, rounded down, or else the package's.
          num_inference_steps: 1 or more, at most as many as the scheduler was trained with; default
            50, for latent consistency models 4.
          timesteps, sigmas: instead of a number of steps, for schedulers that take them.
          original_inference_steps: of the distillation, for lcm and tcd; default the package's.
          denoising_start, denoising_end: fractions of the way from noise to clean, for a base model
            and a refiner one after the other: the base ends at 0.8 with output_type "latent", and
            the refiner starts there with these latents as `image`, without new noise.
          guidance_scale: 0 or more; up to 1 no unconditional pass is run. Default 7.5, for SDXL
            without a mask 5, for latent consistency models (which take it as an input) 8.5.
          guidance_rescale, guidance_interval, guidance_function: see Guidance.
          cache_interval: (start, end) as fractions of the steps; between them every second step
            reuses the prediction of the step before. Faster and not exact; see docs/experiments.md.
          image: image to start from, or one for each prompt: a file, Pillow image or array, see
            sdexport.runtime.images.loading.load_images; or latents, (1 or B, C, H/8, W/8) float32.
          strength: 0..1, how far `image` is changed; default 0.8, with a mask 1, for SDXL 0.3 and
            0.9999.
          mask_image: bright where new content is generated; one for all images, or one for each;
            see sdexport.runtime.images.masks.load_masks.
          mask_blur: radius in pixels of a Gaussian blur of the mask. It widens what is cropped and
            softens what is pasted; what is generated ends where the mask is half bright.
          mask_invert: generate where the mask is dark.
          paste_back: paste the image back where the mask is dark; the result has its size.
          padding_mask_crop: generate only what the mask covers and that many pixels around it, in
            the full size (default the package's own), and paste it into the image.
          resize_mode: how image and mask are brought to the size: "stretch", "crop" or "fill".
          seed: one for the whole batch (like one torch generator), a list with one for each image,
            or None for random ones; 0 is a seed, and -1 stands for a random one.
          generator: instead of a seed, a TorchGenerator, or a list with one for each image. As with
            torch, each call continues its stream.
          noise_device: "cpu" or "cuda": whose torch generator is reproduced.
          latents: (B, C, H/8, W/8) float32 standard normal noise to start from, instead of a seed.
          prompt_embeds, negative_prompt_embeds: (1 or B, n, width) float32 instead of texts;
            prompt_embeds may be a function from (step index, number of steps) to such an array.
          pooled_prompt_embeds, negative_pooled_prompt_embeds: (1 or B, width) float32, which SDXL
            needs in addition.
          prompt_style: whose prompt syntax is read: "plain", "automatic1111", "comfyui" or
            "compel"; see docs/prompts.md. In plain prompts, the default, brackets are text and 75
            tokens are the limit.
          prompt_weights: another name for prompt_style="automatic1111".
          clip_skip: layers of the text encoder to leave out at its end, None is 0; as in diffusers,
            for the prompt and not for the negative prompt.
          token_embeds: replacements for words before the text encoder, such as
            {"puppy": {"puppy": 0.5, "skunk": 0.5}}; see sdexport.runtime.text.token_embeds.
          loras: names that load_lora gave, or files, each alone or as (file, scale); a scale of
            -100..100, default 1, or one for each image. Applied in addition to each other; see
            docs/lora.md.
          controlnets: ControlNets with their control images; see ControlNet and docs/controlnet.md.
          t2i_adapters: T2I-Adapters with their control images; see T2IAdapter and
            docs/t2i-adapter.md.
          ip_adapters: IP-Adapters with their images; see IPAdapter and docs/ip-adapter.md.
          original_size, crops_coords_top_left, target_size, aesthetic_score,
            negative_aesthetic_score, negative_original_size, negative_crops_coords_top_left,
            negative_target_size: SDXL's size conditioning; sizes are (height, width), default the
            image's own, of the negative prompt those of the prompt.
          scheduler: a name of any program, such as "euler_a" or "DPM++ 2M Karras"; a
            scheduler_config.json or its content as a mapping, which keeps the package's training
            keys; or a Scheduler, which fixes the number of steps. Default the package's own.
          schedule: how the noise levels are spaced, such as "karras", "sgm_uniform" or "trailing";
            see sdexport.schedulers.allowed_schedules.
          scheduler_options: keys of the scheduler's configuration, and its arguments, such as
            {"solver_order": 3} or {"s_churn": 4}.
          eta: for DDIM and TCD, 0..1.
          safety: run the package's safety checker, and return black images in place of those that
            it flags, as diffusers does; see Result.nsfw_content_detected.
          on_step: called after every step; it cannot change the image.
          callback_on_step_end: called after every step with (pipeline, step, timestep, arrays by
            name) as in diffusers; the arrays of the dict that it returns replace the loop's. See
            sdexport.runtime.step_callback.
          callback_on_step_end_tensor_inputs: names of those arrays, default ["latents"].
          output_type: "pil"; "np" for (B, H, W, 3) float32 in 0..1; "latent" for the latents, not
            decoded.
          return_dict: False returns the tuple that diffusers' pipeline of the family does, images
            first, instead of a Result.
        Raises: InvalidArgumentError: an argument out of range. MissingDependencyError: the backend
          is not installed. EngineError: a component failed, or its output is not finite.
        """
        clip_skip = _or(clip_skip, 0)
        arguments = dict(locals())  # what is recorded in the images
        reject_unknown(unknown, call_argument_names())
        check_output(output_type, return_dict)
        checker = safety_of_call(self.package, self.session, self.max_batch, safety, output_type)
        callbacks = StepCallbacks(callback_on_step_end, callback_on_step_end_tensor_inputs)
        checks.function("on_step", on_step)
        style = style_name(prompt_style, weights=prompt_weights)
        if cache_interval is not None:
            checks.interval("cache_interval", cache_interval)
        task = {"image": image is not None, "mask": mask_image is not None}
        defaults = self.defaults(**task)
        scale = _or(guidance_scale, defaults.guidance_scale)
        guidance = Guidance(scale, guidance_rescale, guidance_interval, guidance_function)
        prompts, negatives = prompt_arguments.prompts(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
        )
        prompt_arguments.check_texts(arguments)
        self._family.check_task(**task)
        inpainting = InpaintOptions(mask_blur, mask_invert, paste_back, padding_mask_crop)
        inpainting.check(mask_image, resize_mode, output_type)
        following = FollowedImages(
            checked_controlnets(controlnets),
            checked_t2i_adapters(t2i_adapters),
            checked_ip_adapters(ip_adapters),
        )
        images = inputs.image_inputs(
            image,
            mask_image,
            height,
            width,
            resize_mode,
            inpainting=inpainting,
            default_size=following.default_size(self.package.manifest),
            space=self._space,
            count=len(prompts),
        )
        if images.latents is not None and self._family.masked_input:
            raise InvalidArgumentError("image: an inpainting model needs pixels, got latents")
        both_texts = functools.partial(
            prompt_arguments.both_texts,
            repeats=num_images_per_prompt,
            encoders=len(self.text_encoders.tokenizers),
        )
        texts = both_texts("prompt_2", prompts, prompt_2)
        named: LorasOfPrompts = []
        if self.lora_dir is not None:
            prompts, texts, named = loras_in_prompts(texts, self.lora_dir, arguments)
        plan = plan_timesteps(
            self._choose(scheduler, schedule, scheduler_options),
            num_inference_steps,
            ImageShare.checked(
                strength,
                denoising_start,
                denoising_end,
                default=defaults.strength,
                shortens=self._family.strength_shortens and images.mask is None,
            ),
            has_image=images.has_image,
            default_steps=defaults.num_inference_steps,
            eta=eta,
            timesteps=timesteps,
            sigmas=sigmas,
            original_inference_steps=original_inference_steps,
        )
        if latents is not None:
            space = self.latent_shape(images.height, images.width)
            checks.float_array("latents", latents, (len(prompts), *space))
        call = CheckedCall(
            arguments,
            prompts,
            negatives,
            texts,
            both_texts("negative_prompt_2", negatives, negative_prompt_2),
            zeros=negative_prompt is None
            and self._family.zeros_without_negative_prompt(self.package.model_index),
            style=style,
            guidance_scale=scale,
            guidance=self._family.guidance(guidance),
            images=images,
            plan=plan,
            noise=ImageNoise(seed, len(prompts), noise_device, generator=generator),
            sizes=SizeConditioning.checked(
                (images.height, images.width),
                images.has_image,
                **{name: arguments[name] for name in SIZE_ARGUMENTS},
            ),
            callbacks=callbacks,
            adapters=self._call_adapters(
                loras,
                named,
                following,
                ControlledImages(
                    len(prompts),
                    images.width,
                    images.height,
                    plan.steps,
                    resize_mode,
                    [Crop(each.original.size, each.box) for each in images.paste_back]
                    if padding_mask_crop is not None
                    else (),
                    self.max_batch,
                    plan.counted_steps,
                ),
            ),
            safety=checker,
        )
        result = generate(self, call)
        detected = result.nsfw_content_detected
        return result if return_dict else self._family.output_tuple(result.images, detected)

    def like(self, source: Any, **changes: Any) -> Result:
        """Generate an image again from the settings that it carries.

        With the same package and backend the image is the same. What differs is named in one
        warning. An image that was part of a batch is generated with its whole batch.

        Args:
          source: an image file that sdexport wrote, a Pillow image, or Parameters. Input images are
            looked for in the file's folder and in the current one.
          changes: arguments of a call, instead of the recorded ones.
        Returns: a result of one image.
        Raises: InvalidArgumentError: no image with settings, or one that depends on something that
          they do not hold, such as latents; give it among the changes.
        Example:
            >>> from sdexport import load_pipeline, save_image
            >>> with load_pipeline("package") as pipe:
            ...     result = pipe("a red circle", seed=3, num_inference_steps=4)
            ...     save_image(result.images[0], "circle.png")
            ...     again = pipe.like("circle.png")
            ...     other = pipe.like("circle.png", seed=4)
            >>> again.images[0].tobytes() == result.images[0].tobytes()
            True
        """
        parameters = parameters_of(source)
        arguments = arguments_like(parameters, changes, folder_of(source), self.lora_dir)
        name = str(source) if isinstance(source, (str, PathLike)) else "image"
        warn_of_differences(name, differences(parameters, self.settings, arguments))
        result: Result = self(**{**arguments, "return_dict": True}).only(parameters.batch_index)
        warn_of_differences(name, other_engines(parameters, result.parameters[0].engines))
        return result

    def warm_up(
        self,
        height: int | None = None,
        width: int | None = None,
        *,
        batch: int = 1,
        guidance_scale: float | None = None,
        image: bool = False,
    ) -> float:
        """Open all sessions and generate an image of one step, so that the next call is fast.

        Engines compile for sizes, batches and with or without guidance: warm up as you will call.

        Args:
          height, width: pixels; default the package's size.
          batch: images of a call.
          guidance_scale: as in a call.
          image: whether calls start from an image, and need the VAE's encoder.
        Returns: the seconds that it took.
        Raises: as a call; EngineError if a session cannot be opened.
        """
        began = time.perf_counter()
        default_height, default_width = self.package.manifest.default_size
        size = _or(height, default_height), _or(width, default_width)
        further: dict[str, Any] = {}
        if image or self._family.starts_from_image:
            further["image"] = np.zeros((*size, 3), np.uint8)
            further["strength"] = 1.0
        if self._family.masked_input:
            further["mask_image"] = np.full(size, 255, np.uint8)
        self(
            "",
            height=size[0],
            width=size[1],
            num_inference_steps=1,
            num_images_per_prompt=batch,
            guidance_scale=guidance_scale,
            seed=0,
            **further,
        )
        return time.perf_counter() - began

    def _call_adapters(
        self,
        loras: Sequence[LoraArgument] | None,
        named: LorasOfPrompts,
        following: FollowedImages,
        controlled: ControlledImages,
    ) -> CallAdapters:
        """What the adapters of a call change; `generate` closes it.

        Raises: see AppliedLoras and denoiser_adapters.
        """
        applied = loras_of_call(self._loras, loras, controlled.count, self._components, named=named)
        parts: Sequence[DenoiserAdapter] = ()
        if following:
            from sdexport.runtime.adapters.denoiser_adapters import denoiser_adapters

            parts = denoiser_adapters(
                *(self._adapters, self.package, following, controlled, self._components),
                with_loras=applied.changes(self._family.denoiser),
            )
        rank_of = functools.partial(
            self._loras.rank_without_loras, self._family.denoiser, self._components
        )
        return CallAdapters(self._family.denoiser, applied, parts, rank_of)


@functools.cache
def call_argument_names() -> tuple[str, ...]:
    """Names of the arguments of a pipeline call."""
    parameters = inspect.signature(Pipeline.__call__).parameters.values()
    return tuple(p.name for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD)


def _or(value: Any, default: Any) -> Any:
    """A value, or the default if it is None."""
    return default if value is None else value
