"""T2I-Adapters: a network that runs once for an image, whose features a UNet adds in each step.

Source: Mou et al. 2023, arXiv 2302.08453.
"""

from __future__ import annotations

from sdexport.runtime.models.components import AdapterKind, ComponentSpec, Role
from sdexport.runtime.models.family import Defaults, ModelFamily

CONTROL_IMAGE = "image"
"""The input, (B, 1 or 3, H, W) float32 in 0..1; the outputs are named as the UNet's inputs."""
T2I_ADAPTER = ComponentSpec(
    name="t2i_adapter",
    role=Role.T2I_ADAPTER,
    source="t2i_adapter",
    inputs=frozenset({CONTROL_IMAGE}),
    outputs=frozenset({"down_intrablock_additional_residuals_0"}),
    classes=("diffusers", ("T2IAdapter",)),
)
T2I_FAMILY = ModelFamily(
    name="t2i-adapter",
    pipelines=(),
    components=(T2I_ADAPTER,),
    text_to_image=Defaults(),
    image_to_image=Defaults(),
    inpainting=Defaults(),
    adapter=AdapterKind.T2I_ADAPTER,
)
