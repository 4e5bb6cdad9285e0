"""The components of a package: the role of each, and the tensors that its graph must have."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a component does in the pipeline."""

    TEXT_ENCODER = "text encoder"
    DENOISER = "denoiser"
    VAE_DECODER = "VAE decoder"
    VAE_ENCODER = "VAE encoder"
    SAFETY_CHECKER = "safety checker"
    CONTROL_EMBEDDING = "control image embedding"
    CONTROLNET = "ControlNet"
    T2I_ADAPTER = "T2I-Adapter"
    IMAGE_ENCODER = "image encoder"
    IMAGE_PROJECTION = "image projection"


STEP_ROLES = (Role.DENOISER, Role.CONTROLNET)
"""Components that run in each step, on both halves of a guided batch."""
PIXEL_ROLES = (Role.VAE_ENCODER, Role.CONTROL_EMBEDDING, Role.T2I_ADAPTER)
"""Components whose input is an image in pixels."""


@dataclass(frozen=True)
class ComponentSpec:
    """One component of a family.

    name: its folder in a package, and what options and messages call it.
    source: its folder in a diffusers checkpoint; VAE decoder and encoder share one.
    inputs, outputs: tensors that its graph must have; it may have more.
    tokenizer: for text encoders, the folder of its tokenizer.
    projected: for text encoders, whether it also gives projected pooled embeddings.
    classes: library and class names that the checkpoint may name for it.
    optional: whether a checkpoint or a package may be without it.
    """

    name: str
    role: Role
    source: str
    inputs: frozenset[str]
    outputs: frozenset[str]
    classes: tuple[str, tuple[str, ...]]
    tokenizer: str = ""
    projected: bool = False
    optional: bool = False


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

CONCEPTS, SPECIAL_CARE = "concept_cosines", "special_care_cosines"
SAFETY_CHECKER = ComponentSpec(
    name="safety_checker",
    role=Role.SAFETY_CHECKER,
    source="safety_checker",
    inputs=frozenset({"clip_input"}),
    outputs=frozenset({CONCEPTS, SPECIAL_CARE}),
    classes=("stable_diffusion", ("StableDiffusionSafetyChecker",)),
    optional=True,
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
MODEL, ADAPTERS = "model", "adapters"


class AdapterKind(Enum):
    """What can change a denoiser at run time; a LoRA also changes text encoders.

    The value is the name of the graph that takes the inputs of this kind alone.
    """

    LORA = "lora"
    CONTROLNET = "controlnet"
    T2I_ADAPTER = "t2i_adapter"
    IP_ADAPTER = "ip_adapter"


LORA_GRAPHS = {
    AdapterKind.LORA.value: MODEL,
    f"{AdapterKind.LORA.value}_{INPUTS_EMBEDS}": INPUTS_EMBEDS,
    f"{AdapterKind.LORA.value}_{ATTENTION_MASK}": ATTENTION_MASK,
}
"""Graphs that take the factors of a LoRA as inputs, each with the graph that it was made from."""
ADAPTER_GRAPHS = LORA_GRAPHS | {kind.value: MODEL for kind in AdapterKind} | {ADAPTERS: MODEL}
"""Graphs that take the inputs of adapters, each with the graph that it was made from. ADAPTERS is
that of a denoiser for all kinds that were exported together, if there are several."""
EXPORT_OPTIONS = {
    AdapterKind.LORA: ("LoRAs", "--lora-inputs"),
    AdapterKind.CONTROLNET: ("ControlNets", "--controlnet-inputs"),
    AdapterKind.T2I_ADAPTER: ("T2I-Adapters", "--t2i-adapter-inputs"),
    AdapterKind.IP_ADAPTER: ("IP-Adapters", "--ip-adapter-inputs"),
}
"""What adapters of a kind are called, and the option of `sdexport export` that they need."""
FURTHER_GRAPHS = (*TOKEN_GRAPHS, *ADAPTER_GRAPHS)
"""What a package may hold of a component in addition to model.onnx."""


def tensors_of(spec: ComponentSpec, further: str = "") -> tuple[frozenset[str], frozenset[str]]:
    """The inputs and outputs that a component's graph must have, besides those of adapters.

    Args:
      further: one of FURTHER_GRAPHS; "" for model.onnx.
    """
    base = ADAPTER_GRAPHS.get(further, further or MODEL)
    return (spec.inputs, spec.outputs) if base == MODEL else TOKEN_GRAPHS[base]


def lora_graph(graph: str) -> str:
    """The graph that takes LoRAs in place of a component's graph or token graph."""
    component, _, further = graph.partition(".")
    lora = AdapterKind.LORA.value
    return f"{component}.{f'{lora}_{further}' if further else lora}"


DOWN_RESIDUAL, MID_RESIDUAL = "down_block_additional_residuals_", "mid_block_additional_residual"
"""The inputs of a denoiser, and outputs of a ControlNet, that are added to skip connections (each
with its number) and to what leaves the middle block. The names are those of diffusers."""
T2I_RESIDUAL, IP_INPUT, LORA_INPUT = "down_intrablock_additional_residuals_", "ip_adapter.", "lora."
"""What the names of a denoiser's inputs begin with that take T2I-Adapters (diffusers' name, and a
number), IP-Adapters and LoRAs."""


MOST_LEVELS = 8
"""Of a UNet."""


def is_residual(name: str) -> bool:
    """Whether a tensor is one that a ControlNet adds to the denoiser in a step."""
    return name == MID_RESIDUAL or name.startswith(DOWN_RESIDUAL)


def needed_by(further: str) -> tuple[str, str]:
    """What needs one of FURTHER_GRAPHS, in words, and the options of the export that write it."""
    if further in LORA_GRAPHS:
        return EXPORT_OPTIONS[AdapterKind.LORA]
    for kind, needs in EXPORT_OPTIONS.items():
        if further == kind.value:
            return needs
    if further == ADAPTERS:
        return "adapters of several kinds at once", " ".join(o for _, o in EXPORT_OPTIONS.values())
    return "replaced token embeddings and weights below 1 in Compel's style", ""


def level_dimensions(level: int) -> tuple[str, str]:
    """Names of height and width on a level of a UNet, on which latents are 2**level smaller."""
    return (f"height_{2**level}", f"width_{2**level}") if level else ("height", "width")


def positions_dimension(level: int) -> str:
    """Name of the number of places on a level of a UNet: its height times its width."""
    return f"positions_{2**level}"


def adapter_graph(component: str, kinds: Collection[AdapterKind]) -> str:
    """The graph of a denoiser that takes these kinds of adapters, at least; itself without any."""
    if not kinds:
        return component
    name = next(iter(kinds)).value if len(kinds) == 1 else ADAPTERS
    return f"{component}.{name}"
