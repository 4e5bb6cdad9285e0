"""How much memory an open component takes: weights in the form of its backend, and tensors.

The figures of `_COSTS` were measured with full-size models (benchmarks/memory_need.py), on the CPU;
GPUs are not estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sdexport.engines import PREPARED_BACKEND
from sdexport.engines.errors import EngineError
from sdexport.engines.ort.widened_weights import kept_halves, widens
from sdexport.runtime.adapters.adapter_memory import merged_weights
from sdexport.runtime.component_backends import Backends, backend_of
from sdexport.runtime.component_engines import resolve_backend, usable_engine
from sdexport.runtime.models.components import STEP_ROLES, TOKEN_EMBEDDING, Role
from sdexport.runtime.packages.package import Package

OPENVINO, CPU = "openvino", "CPUExecutionProvider"
_FLOAT = 4
"""Bytes of an element of a float32 tensor."""


@dataclass(frozen=True)
class _Cost:
    """What a backend needs.

    opening, kept: bytes while and after a component is opened, for each byte of float32 weights.
    scores: float32 matrices of attention scores that are held at once; 0 if none is ever complete.
    denoiser, decoder, encoder: tensors of the size of the first level's that are held at once.
    """

    opening: float
    kept: float
    scores: float
    denoiser: float
    decoder: float
    encoder: float


_COSTS: Mapping[str, _Cost] = {
    "onnxruntime fp32": _Cost(1.03, 1.03, 1, 20, 7.6, 4),
    "onnxruntime fp16": _Cost(1.07, 1.07, 1, 20, 7.6, 4),
    f"{PREPARED_BACKEND} prepared": _Cost(1.12, 1.12, 1, 20, 7.6, 4),
    "openvino f32": _Cost(1.27, 1.27, 0, 320, 4.6, 4),
    "openvino bf16": _Cost(0.58, 0.56, 0, 40, 4.2, 4),
    "openvino f16": _Cost(0.58, 0.56, 0, 40, 4.2, 4),
    "openvino i8": _Cost(0.42, 0.42, 0, 40, 4.2, 4),
}
PREPARED = f"{PREPARED_BACKEND} prepared"
_LOWER = (f"{OPENVINO} bf16", f"{OPENVINO} f16", f"{OPENVINO} i8")
"""Forms that compute any package in less than float32."""
_MERGED = {f"{OPENVINO} f32": 8, f"{OPENVINO} bf16": 4, f"{OPENVINO} f16": 4}
"""Bytes for each element of the weights to which factors of LoRAs are added: the sum, and once more
as it is arranged in a call."""
_IN_FLOAT32 = 1.2
"""Bytes that a graph in float32 needs for each stored byte: most are mapped, and weights are
converted one at a time."""
_SMALL = (Role.TEXT_ENCODER, Role.SAFETY_CHECKER, Role.IMAGE_ENCODER, Role.IMAGE_PROJECTION)
"""Components whose intermediate tensors are small next to their weights, for any image."""
_STORED = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Bytes of a weight in a package of a precision."""


@dataclass(frozen=True)
class Call:
    """A component that is run: on so many rows, of so many latent cells in height and width.

    unprepared: by the package's own graph although it is prepared, and closed again.
    in_float32: from its weights as they are stored, if it otherwise runs in a lower precision, and
      closed again; verification does that.
    """

    component: str
    rows: int
    height: int
    width: int
    unprepared: bool = False
    in_float32: bool = False


class Held(NamedTuple):
    """Bytes of a session while it opens, and while and after it computes."""

    opening: int
    kept: int


def held_by(package: Package, call: Call, form: str, *, is_open: bool) -> Held | None:
    """What the session of a call needs; None if that is not known, such as on a GPU.

    Args:
      form: of its weights, see form_of.
      is_open: whether its weights are held already, by an earlier call.
    """
    cost = _COSTS.get(form)
    if cost is None:
        return None
    is_mapped = call.component.endswith(TOKEN_EMBEDDING)  # a table
    component = call.component.partition(".")[0]
    weights = 0 if is_open or is_mapped else _in_memory(package, component, form)
    tensors = _activations(package, call, cost) + _merged(package, call, form)
    return Held(round(cost.opening * weights), round(cost.kept * weights) + tensors)


def form_of(package: Package, graph: str, backends: Backends, options: Mapping[str, Any]) -> str:
    """In which form the weights of a graph are kept: a key of _COSTS, or something else."""
    spec = backend_of(backends, graph)
    options = {**options, **spec.options}
    precision = options.get("precision", "f32")
    backend = resolve_backend(
        package,
        graph,
        spec.name,
        options.get("engine_dir"),
        options.get("expected_images"),
        precision,
    )
    if backend == OPENVINO:
        return f"{backend} {precision}" if options.get("device", "CPU") == "CPU" else ""
    if backend != PREPARED_BACKEND or options.get("providers", CPU) not in (CPU, [CPU], (CPU,)):
        return backend
    if usable_engine(package, graph, backend, options.get("engine_dir")):
        return PREPARED
    return own_form(package, graph.partition(".")[0])


def float32_session(package: Package, call: Call, form: str) -> int:
    """Bytes of a session that computes a graph in float32; 0 if it runs in float32 anyway."""
    component = call.component.partition(".")[0]
    precision = package.manifest.components[component].precision
    if precision == "fp32" and form not in _LOWER:
        return 0
    stored = weights_of(package, component) * _STORED.get(precision, _FLOAT) // _FLOAT
    tensors = _activations(package, call, _COSTS[f"{PREPARED_BACKEND} fp32"])
    return round(_IN_FLOAT32 * stored) + tensors


def _merged(package: Package, call: Call, form: str) -> int:
    """Bytes that the weights take in OpenVINO to which factors of LoRAs are added.

    A graph that takes LoRAs adds factors of zero where there are none.
    """
    component, further, _ = call.component.partition(".")
    if form not in _MERGED or not further:
        return 0
    if package.family.component(component).role is not Role.DENOISER:
        return 0
    found = merged_weights(
        package,
        call.component,
        call.rows,
        (call.height, call.width),
        in_bfloat16=form == f"{OPENVINO} bf16",
    )
    return round(_MERGED[form] * found)


def own_form(package: Package, component: str) -> str:
    """The form in which ONNX Runtime keeps the weights of the package's own graph."""
    return f"{PREPARED_BACKEND} {package.manifest.components[component].precision}"


def weights_of(package: Package, component: str) -> int:
    """Bytes of a component's weights in float32."""
    files = (package.folder / component).iterdir()
    stored = sum(file.stat().st_size for file in files if file.is_file())
    return stored * _FLOAT // _STORED.get(package.manifest.components[component].precision, 4)


def _in_memory(package: Package, component: str, form: str) -> int:
    """Bytes of a component's weights as a backend uses them, before the factors of _COSTS.

    ONNX Runtime keeps large factors of products in float16 where they are mapped, and converts one
    at a time.
    """
    weights = weights_of(package, component)
    if form != f"{PREPARED_BACKEND} fp16":
        return weights
    try:
        found = widens(package.model_path(component))
        halves = [each.size for each in kept_halves(found)] if found else []
    except (EngineError, ValueError, OSError):
        return weights  # opening it says what is wrong
    return weights - sum(halves) + 2 * max(halves, default=0)  # of 4 bytes, 2 are kept


def _activations(package: Package, call: Call, cost: _Cost) -> int:
    """Bytes of the intermediate tensors of a call that are held at once."""
    component = call.component.partition(".")[0]
    spec, config = package.family.component(component), package.config(component)
    if spec.role in _SMALL:
        return 0
    levels: Sequence[int] = (
        config.get("block_out_channels") or config.get("decoder_block_out_channels") or (128,)
    )
    cells = call.rows * call.height * call.width
    if spec.role is Role.CONTROL_EMBEDDING:
        widest = config.get("conditioning_embedding_out_channels") or (16,)
        return round(_FLOAT * cost.encoder * widest[0] * cells * package.manifest.downscale**2)
    if spec.role is Role.T2I_ADAPTER:
        widest = config.get("channels") or (320,)
        return round(_FLOAT * cost.encoder * widest[0] * cells)
    if spec.role in STEP_ROLES:
        scores = max(_scores(config, level, call) for level in range(len(levels)))
        held = cost.denoiser
    else:
        scores = cells * call.height * call.width
        cells *= package.manifest.downscale**2
        held = cost.decoder if spec.role is Role.VAE_DECODER else cost.encoder
    return round(_FLOAT * (held * levels[0] * cells + cost.scores * scores))


def _scores(config: Mapping[str, Any], level: int, call: Call) -> int:
    """Elements of the scores of one self-attention on a level of a UNet; 0 if there is none."""
    blocks = config.get("down_block_types") or ()
    if level >= len(blocks) or "CrossAttn" not in blocks[level]:
        return 0
    heads = config.get("num_attention_heads") or config.get("attention_head_dim") or 8
    count: int = heads if isinstance(heads, int) else heads[level]
    tokens: int = -(-call.height // 2**level) * -(-call.width // 2**level)
    return call.rows * count * tokens**2
