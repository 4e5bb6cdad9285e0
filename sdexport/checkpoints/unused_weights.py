"""Accounting for every weight of a checkpoint: used, known to be dispensable, or an error.

MAY_REMAIN is the complete list of what an export leaves behind; docs/export.md repeats it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sdexport.engines.errors import CheckpointError
from sdexport.engines.messages import one_line

_NAMED = 3
"""Weights that a message names; it counts the others."""

SINGLE_FILE_CHECKER = "safety_checker."
"""What the names of a safety checker's weights begin with, in the few single files with one."""
MAY_REMAIN: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(\w+_)?ema\.", "averaged (EMA) copies, which --ema takes instead"),
    (r"(^|\.)(position_ids|attn_mask|attention_mask)$", "positions and causal masks"),
    (r"(^|\.)(loss|discriminator|perceptual_loss|lpips)\.", "losses and discriminators"),
    (
        r"^(betas|logvar|scale_factor|lvlb_weights|(\w+_)?alphas_cumprod(_prev)?|posterior_\w+)$"
        r"|^(denoiser|model_sampling)\.(log_)?sigmas$",
        "tables of the noise schedule, which the scheduler computes",
    ),
    (
        r"^(optimizer\w*|lr_schedulers?|callbacks|loops|(grad_)?scaler|amp_\w+|hparams\w*"
        r"|hyper_parameters|trainer\w*)(\.|$)"
        r"|(^|\.)(global_step|epoch|iteration|step|num_updates|pytorch-lightning_version)$",
        "the state of the optimiser and the trainer",
    ),
    (
        r"(^|\.)logit_scale$|(^|\.)text_projection(\.weight)?$"
        r"|^(cond_stage_model\.|conditioner\.embedders\.\d\.)?(model\.|transformer\.)?"
        r"(visual|vision_model|visual_projection)\.",
        "CLIP's vision model and projections, where the text encoder alone is used",
    ),
    (f"^{SINGLE_FILE_CHECKER}", "a safety checker, which only diffusers folders are exported with"),
)
"""Patterns of names that may be left over, each with its reason."""

_UNSUPPORTED = tuple(
    (re.compile(pattern), meaning)
    for pattern, meaning in (
        (
            r"\.(weight_|input_|output_)?(q?scale(_\w+)?|zero_point)$",
            "a checkpoint quantised in an unknown way",
        ),
        (r"^noise_augmentor\.|^embedder\.|\.label_emb\.", "an unCLIP (image variation) model"),
        (r"^class_embedding\.", "a model with class conditioning, such as unCLIP"),
        (r"^low_res_model\.", "an upscaling model"),
        (r"^depth_model\.", "a depth-to-image model"),
        (
            r"^(control_model|controlnet\w*)\.|(^|\.)(input_hint_block|zero_convs|middle_block_out"
            r"|controlnet_\w+)\.",
            "a checkpoint with a ControlNet in it",
        ),
        (r"motion_modules?\.|temporal_transformer\.", "an AnimateDiff (motion) model"),
        (
            r"^(image_proj|ip_adapter|image_proj_model|adapter_modules)\.|\.to_[kv]_ip\."
            r"|(^|\.)encoder_hid_proj\.",
            "a checkpoint with an IP-Adapter in it",
        ),
        (r"(^|\.)(position_net|fuser)\.", "a GLIGEN model"),
        (
            r"lora_(up|down|mid|A|B|unet|te)|\.lora\.|_lora\.|hada_w|lokr_w",
            "a checkpoint with a LoRA in it that is not merged",
        ),
        (r"^(bundle_emb|string_to_param|emb_params)\b", "a checkpoint with embeddings in it"),
        (
            r"(joint_blocks|double_blocks|single_blocks)\.\d|^text_encoders\.",
            "a checkpoint with parts of SD 3 or Flux in it",
        ),
    )
)
_MAY_REMAIN = tuple(re.compile(pattern) for pattern, _ in MAY_REMAIN)


def check_supported_parts(path: Path, names: Iterable[str]) -> None:
    """Raises: CheckpointError: some of these weights belong to a part that is not supported."""
    left = sorted(names)
    for pattern, meaning in _UNSUPPORTED:
        if found := [name for name in left if pattern.search(name)]:
            raise CheckpointError(
                f"{path}: {listed(found)} would not be used: it is {meaning}, which is not "
                "supported"
            )


def check_all_used(path: Path, model: str, names: Iterable[str]) -> None:
    """Check that what is left over may be left over.

    Args:
      path, model: for the message.
      names: of the weights that no component uses.
    Raises: CheckpointError: names some of the others, counts them, and says what they are if that
      is known.
    """
    left = sorted(n for n in names if not any(p.search(n) for p in _MAY_REMAIN))
    check_supported_parts(path, left)
    if left:
        raise CheckpointError(
            f"{path}: {listed(left)} would not be used by {model}; it may be another kind of model "
            "or a changed one, and without them its images may differ"
        )


def listed(names: list[str]) -> str:
    """The number of weights and the first names, such as "2 weights (a, b)"."""
    shown = ", ".join(one_line(name, 80) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} weight{'s' if len(names) > 1 else ''} ({shown}{more})"
