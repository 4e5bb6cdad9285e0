"""The components of a package: the role of each, and the tensors that its graph must have."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a component does in the pipeline."""

    TEXT_ENCODER = "text encoder"
    DENOISER = "denoiser"
    VAE_DECODER = "VAE decoder"
    VAE_ENCODER = "VAE encoder"


@dataclass(frozen=True)
class ComponentSpec:
    """One component of a family.

    name: its folder in a package, and what options and messages call it.
    source: its folder in a diffusers checkpoint; VAE decoder and encoder share one.
    inputs, outputs: tensors that its graph must have; it may have more.
    tokenizer: for text encoders, the folder of its tokenizer.
    projected: for text encoders, whether it also gives projected pooled embeddings.
    classes: library and class names that the checkpoint may name for it.
    """

    name: str
    role: Role
    source: str
    inputs: frozenset[str]
    outputs: frozenset[str]
    classes: tuple[str, tuple[str, ...]]
    tokenizer: str = ""
    projected: bool = False


def clip_text_encoder(number: int = 1, *, projected: bool = False) -> ComponentSpec:
    """A CLIP text encoder, the first or a further one, as diffusers numbers them."""
    suffix = "" if number == 1 else f"_{number}"
    return ComponentSpec(
        name=f"text_encoder{suffix}",
        role=Role.TEXT_ENCODER,
        source=f"text_encoder{suffix}",
        inputs=frozenset({"input_ids"}),
        outputs=frozenset({"last_hidden_state"}),
        classes=("transformers", (f"CLIPTextModel{'WithProjection' if projected else ''}",)),
        tokenizer=f"tokenizer{suffix}",
        projected=projected,
    )


UNET = ComponentSpec(
    name="unet",
    role=Role.DENOISER,
    source="unet",
    inputs=frozenset({"sample", "timestep", "encoder_hidden_states"}),
    outputs=frozenset({"out_sample"}),
    classes=("diffusers", ("UNet2DConditionModel",)),
)
_VAE = "vae", ("diffusers", ("AutoencoderKL", "AutoencoderTiny"))
VAE_DECODER = ComponentSpec(
    name="vae_decoder",
    role=Role.VAE_DECODER,
    source=_VAE[0],
    inputs=frozenset({"latent_sample"}),
    outputs=frozenset({"sample"}),
    classes=_VAE[1],
)
VAE_ENCODER = ComponentSpec(
    name="vae_encoder",
    role=Role.VAE_ENCODER,
    source=_VAE[0],
    inputs=frozenset({"sample"}),
    outputs=frozenset({"latent_parameters"}),
    classes=_VAE[1],
)

TOKEN_EMBEDDING, INPUTS_EMBEDS = "token_embedding", "inputs_embeds"
ATTENTION_MASK = "attention_mask"
TOKEN_GRAPHS = {
    TOKEN_EMBEDDING: (frozenset({"input_ids"}), frozenset({INPUTS_EMBEDS})),
    INPUTS_EMBEDS: (frozenset({"input_ids", INPUTS_EMBEDS}), frozenset({"last_hidden_state"})),
    ATTENTION_MASK: (frozenset({"input_ids", ATTENTION_MASK}), frozenset({"last_hidden_state"})),
}
"""What a package may hold of a text encoder in addition to the complete graph: the embedding table,
the transformer after it, and the complete graph with an attention mask as input. Each with the
inputs and outputs it must have."""
MODEL, LORA = "model", "lora"
LORA_GRAPHS = {
    LORA: MODEL,
    f"{LORA}_{INPUTS_EMBEDS}": INPUTS_EMBEDS,
    f"{LORA}_{ATTENTION_MASK}": ATTENTION_MASK,
}
"""Graphs that take the factors of a LoRA as inputs, each with the graph that it was made from."""
FURTHER_GRAPHS = (*TOKEN_GRAPHS, *LORA_GRAPHS)
"""What a package may hold of a component in addition to model.onnx."""


def tensors_of(spec: ComponentSpec, further: str = "") -> tuple[frozenset[str], frozenset[str]]:
    """The inputs and outputs that a component's graph must have, besides the factors of a LoRA.

    Args:
      further: one of FURTHER_GRAPHS; "" for model.onnx.
    """
    base = LORA_GRAPHS.get(further, further or MODEL)
    return (spec.inputs, spec.outputs) if base == MODEL else TOKEN_GRAPHS[base]


def lora_graph(graph: str) -> str:
    """The graph that takes LoRAs in place of a component's graph or token graph."""
    component, _, further = graph.partition(".")
    return f"{component}.{f'{LORA}_{further}' if further else LORA}"
