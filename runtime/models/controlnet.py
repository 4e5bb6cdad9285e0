"""ControlNets: an encoder of the control image, and the network that runs in each step.

A ControlNet-Union is one network for several types of control images. What it makes of a control
image and its type does not depend on the step, so its encoder has further inputs, and the network
takes the types that are used.

Source: Zhang et al. 2023, arXiv 2302.05543.
"""

from __future__ import annotations

from sdexport.runtime.models.components import MID_RESIDUAL, AdapterKind, ComponentSpec, Role
from sdexport.runtime.models.family import Defaults, ModelFamily

_SOURCE, _CLASSES = "controlnet", ("diffusers", ("ControlNetModel", "ControlNetUnionModel"))
CONTROL_IMAGE, EMBEDDING = "controlnet_cond", "control_embedding"
"""The control image, (B, channels, H, W) float32, and what the network takes of it in each step."""
CONTROL_TYPE, CONDITIONING_SCALE = "control_type", "conditioning_scale"
"""Further inputs of a ControlNet-Union, float32: 1 for the types that are used and 0 for others,
(1, types) for the encoder and (B, types) for the network; the scale of the control image, (1,)."""
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
