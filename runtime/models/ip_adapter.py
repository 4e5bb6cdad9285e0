"""IP-Adapters: an image encoder, and what turns its output into keys and values for a UNet.

Source: Ye et al. 2023, arXiv 2308.06721.
"""

from __future__ import annotations

from sdexport.runtime.models.components import AdapterKind, ComponentSpec, Role
from sdexport.runtime.models.family import Defaults, ModelFamily

PIXELS = "pixel_values"
"""The image encoder's input, (B, 3, S, S) float32; see runtime.images.clip_image."""
FEATURES = "image_features"
"""Its output: the image's embedding (B, width), or the last layer but one (B, tokens, width)."""
IMAGE_TOKENS = "image_tokens"
"""What the projection makes of it, (B, tokens, width), as wide as a text's embeddings."""
IMAGE_ENCODER = ComponentSpec(
    name="image_encoder",
    role=Role.IMAGE_ENCODER,
    source="image_encoder",
    inputs=frozenset({PIXELS}),
    outputs=frozenset({FEATURES}),
    classes=("transformers", ("CLIPVisionModelWithProjection",)),
)
IMAGE_PROJECTION = ComponentSpec(
    name="image_projection",
    role=Role.IMAGE_PROJECTION,
    source="image_projection",
    inputs=frozenset({FEATURES}),
    outputs=frozenset({IMAGE_TOKENS, "key_0", "value_0"}),
    classes=("diffusers", ("ImageProjection",)),
)
IP_FAMILY = ModelFamily(
    name="ip-adapter",
    pipelines=(),
    components=(IMAGE_ENCODER, IMAGE_PROJECTION),
    text_to_image=Defaults(),
    image_to_image=Defaults(),
    inpainting=Defaults(),
    adapter=AdapterKind.IP_ADAPTER,
)


def key_name(index: int) -> str:
    """The output of a layer's keys, (B, tokens, width), in the order of ip_inputs.image_layers."""
    return f"key_{index}"


def value_name(index: int) -> str:
    """The output of a layer's values."""
    return f"value_{index}"
