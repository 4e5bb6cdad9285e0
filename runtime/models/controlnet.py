"""ControlNets: an encoder of the control image, and the network that runs in each step.

A ControlNet-Union is one network for several types of control images. What it makes of a control
image and its type does not depend on the step, so its encoder has further inputs, and the network
takes the types that are used.

The layers of a ControlNet-XS and those of the UNet exchange values. So its network is a UNet with
the ControlNet in it: it runs in place of the model's own, and gives what that would give.

Source: Zhang et al. 2023, arXiv 2302.05543; Zavadski et al. 2023, arXiv 2312.06573 (ControlNet-XS).
"""

from __future__ import annotations

from dataclasses import replace

from sdexport.runtime.models.components import MID_RESIDUAL, UNET, AdapterKind, ComponentSpec, Role
from sdexport.runtime.models.family import Defaults, ModelFamily

_SOURCE, _CLASSES = "controlnet", ("diffusers", ("ControlNetModel", "ControlNetUnionModel"))
CONTROL_IMAGE, EMBEDDING = "controlnet_cond", "control_embedding"
"""The control image, (B, channels, H, W) float32, and what the network takes of it in each step."""
CONTROL_TYPE, CONDITIONING_SCALE = "control_type", "conditioning_scale"
"""Further inputs of a ControlNet-Union, float32: 1 for the types that are used and 0 for others,
(1, types) for the encoder and (B, types) for the network; the scale of the control image, (1,). The
network of a ControlNet-XS takes the scale of what it adds, (1,)."""
CONTROL_EMBEDDING = ComponentSpec(
    name="control_embedding",
    role=Role.CONTROL_EMBEDDING,
    source=_SOURCE,
    inputs=frozenset({CONTROL_IMAGE}),
    outputs=frozenset({EMBEDDING}),
    classes=_CLASSES,
)
CONTROLNET = ComponentSpec(
    name="controlnet",
    role=Role.CONTROLNET,
    source=_SOURCE,
    inputs=frozenset({"sample", "timestep", "encoder_hidden_states", EMBEDDING}),
    outputs=frozenset({MID_RESIDUAL}),
    classes=_CLASSES,
)
CONTROLNET_FAMILY = ModelFamily(
    name="controlnet",
    pipelines=(),
    components=(CONTROL_EMBEDDING, CONTROLNET),
    text_to_image=Defaults(),
    image_to_image=Defaults(),
    inpainting=Defaults(),
    adapter=AdapterKind.CONTROLNET,
)
XS_CLASSES = ("ControlNetXSAdapter", "UNetControlNetXSModel")
"""Of diffusers: a ControlNet-XS alone, and one with its UNet."""
CONTROLNET_XS = ComponentSpec(
    name=CONTROLNET.name,
    role=Role.CONTROLNET,
    source=_SOURCE,
    inputs=frozenset({*CONTROLNET.inputs, CONDITIONING_SCALE}),
    outputs=UNET.outputs,
    classes=("diffusers", XS_CLASSES),
)
CONTROLNET_XS_FAMILY = replace(
    CONTROLNET_FAMILY, name="controlnet-xs", components=(CONTROL_EMBEDDING, CONTROLNET_XS)
)


def is_xs(family: ModelFamily) -> bool:
    """Whether packages of a family hold a ControlNet-XS."""
    return family.name == CONTROLNET_XS_FAMILY.name
