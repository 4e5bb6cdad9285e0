"""What the source of a ControlNet-Union has besides that of a ControlNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from sdexport.runtime.models.control_types import MOST_TYPES

UNION_CLASS = "ControlNetUnionModel"
IN_UNION = r"(task_embedding$|transformer_layes\.|spatial_ch_projs\.|control_add_embedding\.)"
"""How the names of weights begin that a ControlNet has not; the second one is spelled like that."""
_TASK = "task_embedding"


def union_config(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The further configuration that the weights of a file in diffusers' layout have.

    Its number of attention heads does not show in the weights; it is the one of the published
    networks. Empty if they are of a ControlNet.
    """
    if not any(re.match(IN_UNION, name) for name in state):
        return {}
    types, width = state[_TASK].shape
    layers = (re.match(r"transformer_layes\.(\d+)\.", name) for name in state)
    return {
        "_class_name": UNION_CLASS,
        "num_control_type": types,
        "num_trans_channel": width,
        "num_trans_layer": len({match[1] for match in layers if match}),
        "num_proj_channel": state["spatial_ch_projs.weight"].shape[0],
    }


def union_expectations(config: Mapping[str, Any]) -> dict[str, bool]:
    """What must hold of a configuration, by its description."""
    first, types = config["block_out_channels"][0], config["num_control_type"]
    heads = config["num_trans_head"]
    return {
        f"num_control_type of 1 to {MOST_TYPES}": type(types) is int and 1 <= types <= MOST_TYPES,
        "num_trans_channel and num_proj_channel equal to the first of block_out_channels": (
            config["num_trans_channel"] == config["num_proj_channel"] == first
        ),
        "num_trans_head that divides num_trans_channel": (
            type(heads) is int and heads > 0 and first % heads == 0
        ),
        "addition_time_embed_dim": type(config["addition_time_embed_dim"]) is int,
        "controlnet_conditioning_channel_order of rgb": (
            config["controlnet_conditioning_channel_order"] == "rgb"
        ),
    }
