"""Which layers of a checkpoint a LoRA file changes, by the names of its weights alone.

Trainers spell a layer in many ways: kohya, LyCORIS, OneTrainer, diffusers (old and new), PEFT, the
original layout. Every spelling is reduced to one key with underscores.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sdexport.engines.errors import CheckpointError
from sdexport.engines.messages import plain, shown
from sdexport.runtime.adapters.lora_roles import split_role, unsupported_method

UNET, TEXT, TEXT_2 = "unet", "text_encoder", "text_encoder_2"
OTHER = ""
"""The group of weights whose component is unknown."""
_WRAPPERS = ("base_model_model_", "model_diffusion_model_", "diffusion_model_", "lycoris_")
_PREFIXES = (
    *((f"{network}_unet_", UNET) for network in ("lora", "oft")),
    *((f"{network}_te_", TEXT) for network in ("lora", "oft")),
    *((f"{network}_te{n}_", c) for network in ("lora", "oft") for n, c in ((1, TEXT), (2, TEXT_2))),
    ("lora_te3_", "text_encoder_3"),
    ("text_encoders_clip_l_", TEXT),
    ("text_encoders_clip_g_", TEXT_2),
    ("lora_clip_l_", TEXT),
    ("lora_clip_g_", TEXT_2),
    ("clip_l_", TEXT),
    ("clip_g_", TEXT_2),
    ("text_encoder_3_", "text_encoder_3"),
    ("text_encoder_2_", TEXT_2),
    ("text_encoder_1_", TEXT),
    ("text_encoder_", TEXT),
    ("te1_", TEXT),
    ("te2_", TEXT_2),
    ("cond_stage_model_", TEXT),
    ("conditioner_embedders_0_", TEXT),
    ("conditioner_embedders_1_model_", TEXT_2),
    ("unet_", UNET),
)
_RESNET = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "conv_in": "input_blocks_0_0",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
}
_EMBEDDING = re.compile(r"^bundle_emb\.(?P<word>.+?)\.(?P<key>string_to_param\.[^.]*|[^.]+)$")


@dataclass(frozen=True)
class LoraNames:
    """The names of a LoRA file's weights, sorted.

    layers: by component and layer, the name of the weight of each role.
    totals: how many weights the file has for each component; OTHER if it is unknown.
    unused: the names by component that fit no layer.
    embeddings: by word, the names of the vectors of an embedding that is bundled with the LoRA.
    """

    layers: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    totals: Counter[str] = field(default_factory=Counter)
    unused: dict[str, list[str]] = field(default_factory=dict)
    embeddings: dict[str, dict[str, str]] = field(default_factory=dict)


def read_names(
    names: Iterable[str], layers: Mapping[str, Iterable[str]], component: str | None = None
) -> LoraNames:
    """Find the layer of every weight of a LoRA file.

    Args:
      names: of the file's weights.
      layers: by component, the names of the checkpoint's layers that have a weight.
      component: the one that names without a prefix belong to, if that is known.
    Raises: CheckpointError: a method that is not supported, or two names for one weight.
    """
    names = list(names)
    keys = {part: layer_keys(of_part) for part, of_part in layers.items()}
    multiplied = {n.removesuffix(".on_input") for n in names if n.endswith(".on_input")}
    found = LoraNames()
    for name in names:
        if match := _EMBEDDING.match(name):
            found.embeddings.setdefault(match["word"], {})[match["key"]] = name
            continue
        split = split_role(name, multiplied)
        if split is None or unsupported_method(name):
            _check_method(name, keys, component)
        part, layer = _find(split[0] if split else name, keys, component)
        found.totals[part] += 1
        if split is None or layer is None:
            found.unused.setdefault(part, []).append(name)
            continue
        roles = found.layers.setdefault((part, layer), {})
        if split[1] in roles:
            first = plain(roles[split[1]])
            raise CheckpointError(f"{first} and {plain(name)} are for the same layer")
        roles[split[1]] = name
    return found


def _check_method(name: str, keys: Mapping[str, Mapping[str, str]], component: str | None) -> None:
    """Raises: CheckpointError: the weight is for a known layer, or of a known method."""
    if method := unsupported_method(name):
        raise CheckpointError(f"it holds {method}, such as {plain(name)}, which is not supported")
    ends = [i for i, character in enumerate(name) if character == "."]
    for end in ends:
        part, layer = _find(name[:end], keys, component)
        if layer is not None:
            raise CheckpointError(
                f"{plain(name)}: a weight called {shown(name[end + 1 :])} is not supported for a "
                f"layer ({part}: {layer})"
            )


def _find(
    spelled: str, keys: Mapping[str, Mapping[str, str]], component: str | None
) -> tuple[str, str | None]:
    """The component and the layer; OTHER or None if the name does not say."""
    key = spelled.replace(".", "_").replace("_processor_", "_")
    wrapped = False
    while wrapper := next((w for w in _WRAPPERS if key.startswith(w)), None):
        wrapped, key = True, key.removeprefix(wrapper)
    prefix, part = next(((p, part) for p, part in _PREFIXES if key.startswith(p)), ("", ""))
    key = key.removeprefix(prefix).removeprefix("transformer_text_model_")
    is_text = key.startswith("text_model_")
    key = key.removeprefix("text_model_")
    if part:
        return part, keys.get(part, {}).get(key)
    likely = (TEXT, TEXT_2) if is_text else (UNET, TEXT, TEXT_2)
    for part in (component,) if component else likely:
        if key in keys.get(part, {}):
            return part, keys[part][key]
    return component or (TEXT if is_text else UNET if wrapped else OTHER), None


def layer_keys(names: Iterable[str]) -> dict[str, str]:
    """The names of a component's layers, by every key that files use."""
    names = list(names)
    keys = {}
    for name in names:
        flat = name.removeprefix("text_model.").replace(".", "_")
        keys[flat] = name
        if flat.endswith("_to_out_0"):
            keys[flat.removesuffix("_0")] = name
        for projection in "qkv":  # the first LoRA files of diffusers for text encoders
            if flat.endswith(f"_{projection}_proj"):
                keys[f"{flat.removesuffix(f'_{projection}_proj')}_to_{projection}"] = name
        if flat.endswith("self_attn_out_proj"):
            keys[f"{flat.removesuffix('_out_proj')}_to_out"] = name
    for prefix, original in _original_blocks(names):
        inside = [name for name in names if name.startswith(f"{prefix}.")]
        keys |= {original + _inside(prefix, name): name for name in inside}
    return keys | {key: name for name, key in _TOP.items() if name in names}


def _inside(prefix: str, name: str) -> str:
    rest = name.removeprefix(f"{prefix}.")
    if ".resnets." in prefix:
        rest = _RESNET.get(rest, rest)
    elif ".downsamplers." in prefix:
        rest = "op"
    return "_" + rest.replace(".", "_")


def _original_blocks(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name in diffusers, name in the original layout) of every block of a UNet."""
    blocks = {match[0] for n in names if (match := re.match(r"(down|up)_blocks\.\d+\.\w+\.\d+", n))}
    number = 1
    for i, j, last in _resnets("down", blocks):
        yield f"down_blocks.{i}.resnets.{j}", f"input_blocks_{number}_0"
        yield f"down_blocks.{i}.attentions.{j}", f"input_blocks_{number}_1"
        number += 1
        if last and f"down_blocks.{i}.downsamplers.0" in blocks:
            yield f"down_blocks.{i}.downsamplers.0", f"input_blocks_{number}_0"
            number += 1
    for name, digit in {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}.items():
        yield f"mid_block.{name}", f"middle_block_{digit}"
    for number, (i, j, last) in enumerate(_resnets("up", blocks)):
        yield f"up_blocks.{i}.resnets.{j}", f"output_blocks_{number}_0"
        yield f"up_blocks.{i}.attentions.{j}", f"output_blocks_{number}_1"
        if last and f"up_blocks.{i}.upsamplers.0" in blocks:
            place = 2 if f"up_blocks.{i}.attentions.0" in blocks else 1
            yield f"up_blocks.{i}.upsamplers.0", f"output_blocks_{number}_{place}"


def _resnets(way: str, blocks: Iterable[str]) -> Iterator[tuple[int, int, bool]]:
    """Block, number in it, and whether it is the last one, of every resnet in order."""
    found = [re.match(rf"{way}_blocks\.(\d+)\.resnets\.(\d+)$", block) for block in blocks]
    pairs = sorted((int(match[1]), int(match[2])) for match in found if match)
    for place, (i, j) in enumerate(pairs):
        yield i, j, place + 1 == len(pairs) or pairs[place + 1][0] != i
