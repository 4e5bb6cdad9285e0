"""ControlNets: an encoder of the control image, and the network that runs in each step.

Source: Zhang et al. 2023, arXiv 2302.05543.
"""

from __future__ import annotations

from sdexport.runtime.models.components import MID_RESIDUAL, AdapterKind, ComponentSpec, Role
from sdexport.runtime.models.family import Defaults, ModelFamily

_SOURCE, _CLASSES = "controlnet", ("diffusers", ("ControlNetModel",))
CONTROL_IMAGE, EMBEDDING = "controlnet_cond", "control_embedding"
"""The control image, (B, channels, H, W) float32, and what the network takes of it in each step."""
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
