"""How much memory a pipeline will need, from the package, the image's size and the backend.

The peak of the process is estimated component by component, in the order in which they are opened:
weights in the form that the backend keeps, what opening needs besides, and the largest
intermediate tensors of a call. The figures of `_COSTS` were measured with full-size models
(benchmarks/memory_need.py), on the CPU; GPUs are not estimated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdexport.engines import PREPARED_BACKEND
from sdexport.engines.errors import EngineError
from sdexport.engines.ort.widened_weights import kept_halves, widens
from sdexport.runtime.adapters.adapter_memory import Kinds, graph_for, merged_weights
from sdexport.runtime.component_backends import Backends, backend_of
from sdexport.runtime.component_engines import resolve_backend, usable_engine
from sdexport.runtime.models.components import (
    STEP_ROLES,
    TOKEN_EMBEDDING,
    AdapterKind,
    Role,
)
from sdexport.runtime.models.controlnet import is_xs
from sdexport.runtime.packages.package import Package

PYTHON = 70_000_000
"""Bytes of the interpreter, NumPy and a backend's library."""
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
_PREPARED = f"{PREPARED_BACKEND} prepared"
_BUILDS = {
    PREPARED_BACKEND: 1.45,
    "tensorrt-rtx": 1.9,
    "openvino f32": 0.89,
    "openvino bf16": 0.62,
    "openvino f16": 0.62,
    "openvino i8": 0.45,
}
"""Bytes that a build needs for each byte of a component's float32 weights."""
_BUILD_CONVERTED = 1.77
"""The same for ONNX Runtime and a package that is not in float32: it converts all weights first."""
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


def image_calls(
    package: Package,
    *,
    width: int,
    height: int,
    batch: int = 1,
    guided: bool = True,
    from_image: bool = False,
    max_batch: int | None = None,
    vae_tile: int | None = None,
    safety: bool = False,
    kinds: Sequence[Kinds] = (frozenset(),),
) -> list[Call]:
    """The components that generate images, in the order in which they run.

    There are further graphs of them where images use adapters of different kinds: each has a copy
    of the weights.

    Args:
      width, height: in pixels.
      batch: images at once.
      guided: whether the denoiser runs on the unconditional half too.
      from_image: whether there is an input image.
      max_batch, vae_tile: of the pipeline.
      safety: whether the images are checked.
      kinds: those of each image, see kinds_of; equal ones count once.
    """
    unit = package.manifest.downscale
    rows = min(batch, max_batch or batch)
    size = -(-height // unit), -(-width // unit)
    tile = max(vae_tile // unit, 1) if vae_tile else max(size)
    calls = []
    for role in (Role.TEXT_ENCODER, Role.VAE_ENCODER, Role.DENOISER, Role.VAE_DECODER):
        for spec in package.family.components:
            if spec.role is not role or (role is Role.VAE_ENCODER and not from_image):
                continue
            in_tiles = role in (Role.VAE_ENCODER, Role.VAE_DECODER)
            sides = [min(side, tile) for side in size] if in_tiles else size
            doubled = role is Role.DENOISER and guided
            count = rows * (2 if doubled else 1)
            for graph in dict.fromkeys(graph_for(spec, each) for each in kinds):
                calls.append(Call(graph, count, sides[0], sides[1]))
    checker = package.family.safety_checker
    if safety and checker in package.manifest.components:
        calls.append(Call(str(checker), rows, 0, 0))
    return calls


def adapter_calls(
    package: Package, *, width: int, height: int, batch: int = 1, guided: bool = True
) -> list[Call]:
    """The components of an adapter that images need; see image_calls for the arguments."""
    unit = package.manifest.downscale
    size = -(-height // unit), -(-width // unit)
    return [
        Call(spec.name, batch * (2 if guided and spec.role in STEP_ROLES else 1), *size)
        for spec in package.family.components
    ]


def memory_need(
    package: Package,
    calls: Iterable[Call],
    backends: Backends = "onnxruntime",
    *,
    options: Mapping[str, Any] | None = None,
    low_memory: bool = False,
) -> int | None:
    """The peak of a process that runs these calls one after the other, resident bytes.

    Args:
      options: of the backends' sessions, engine_dir among them.
      low_memory: whether a component is closed before the next one opens.
    Returns: None if a component runs on a backend whose need is not known, such as a GPU.
    """
    options, peak = options or {}, PYTHON
    kept: dict[str, int] = {}
    for call in calls:
        component = call.component.partition(".")[0]
        form = _form(package, call.component, backends, options)
        if low_memory:
            kept = {}
        for name in [name for name in kept if _is_done(package, name, component, form, options)]:
            del kept[name]
        base = PYTHON + sum(kept.values())
        if call.in_float32:
            peak = max(peak, base + _in_float32(package, call, form))
            continue
        if call.unprepared and form != _PREPARED:
            continue
        cost = _COSTS.get(_own_form(package, component) if call.unprepared else form)
        if cost is None:
            return None
        if call.unprepared:
            own = _own_form(package, component)
            opening = round(cost.opening * _in_memory(package, component, own))
            peak = max(peak, base + opening + _activations(package, call, cost))
            continue
        weights = 0 if call.component in kept else _in_memory(package, component, form)
        if call.component.endswith(TOKEN_EMBEDDING):
            weights = 0  # a table, which is mapped
        new = round(cost.kept * weights) + _activations(package, call, cost)
        new += _merged(package, call, form)
        if not low_memory:
            base += _opened_meanwhile(package, component, kept, backends, options)
        peak = max(peak, base + round(cost.opening * weights), base + new)
        kept[call.component] = kept.get(call.component, 0) + new  # arenas are not given back
    return peak


def need_with_adapter(
    need: int | None,
    adapter: Package,
    calls: Iterable[Call],
    backends: Backends = "onnxruntime",
    *,
    options: Mapping[str, Any] | None = None,
    low_memory: bool = False,
) -> int | None:
    """What images need with an adapter; see memory_need for the other arguments.

    Args:
      need: without it. calls: of adapter_calls.
    """
    options = {name: value for name, value in (options or {}).items() if name != "engine_dir"}
    own = memory_need(adapter, calls, backends, options=options, low_memory=low_memory)
    if need is None or own is None:
        return None
    if low_memory and (
        adapter.family.adapter is not AdapterKind.CONTROLNET or is_xs(adapter.family)
    ):
        return max(need, own)  # it is closed before the steps, or the denoiser is
    return need + own - PYTHON


def _opened_meanwhile(
    package: Package,
    component: str,
    kept: Collection[str],
    backends: Backends,
    options: Mapping[str, Any],
) -> int:
    """Bytes of a decoder that OpenVINO opens during the denoising already; see opening_ahead."""
    family = package.family
    if package.manifest.is_adapter or family.component(component).role is not Role.DENOISER:
        return 0
    decoder = family.vae_decoder
    if decoder in kept or decoder not in package.manifest.components:
        return 0
    form = _form(package, decoder, backends, options)
    if not form.startswith(OPENVINO) or form not in _COSTS:
        return 0
    return round(_COSTS[form].kept * _weights(package, decoder))


def _is_done(
    package: Package, graph: str, coming: str, form: str, options: Mapping[str, Any]
) -> bool:
    """Whether the memory of an open graph is free again when another component runs.

    Weights of text encoders are mapped by ONNX Runtime, and freed. If one image is expected, a
    component is closed when it has done its work.
    """
    own, other = (package.family.component(n.partition(".")[0]).role for n in (graph, coming))
    is_only = options.get("expected_images") == 1
    if own is Role.TEXT_ENCODER and other is not own:
        return is_only or form.startswith(PREPARED_BACKEND)
    return own is Role.DENOISER and other is Role.VAE_DECODER and is_only


def build_need(
    package: Package, components: Sequence[str], backend: str, *, precision: str | None = None
) -> int | None:
    """The peak of building engines, in bytes; None for a backend whose need is not known.

    Args:
      components: their names, or those of graphs of them; all of them if there are none.
      precision: for which OpenVINO compiles; None is f32.
    """
    key = f"{backend} {precision or 'f32'}" if backend == OPENVINO else backend
    if key not in _BUILDS:
        return None
    graphs = components or package.graphs
    if not set(graphs) <= set(package.graphs):
        return None  # the builder says which there are
    names = {graph.partition(".")[0] for graph in graphs}

    def of(name: str) -> float:
        converted = package.manifest.components[name].precision != "fp32"
        is_more = converted and backend == PREPARED_BACKEND
        return (_BUILD_CONVERTED if is_more else _BUILDS[key]) * _weights(package, name)

    return PYTHON + round(max(map(of, names)))


def _form(package: Package, graph: str, backends: Backends, options: Mapping[str, Any]) -> str:
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
        return _PREPARED
    return _own_form(package, graph.partition(".")[0])


def _in_float32(package: Package, call: Call, form: str) -> int:
    """Bytes of a session that computes a graph in float32; 0 if it runs in float32 anyway."""
    component = call.component.partition(".")[0]
    precision = package.manifest.components[component].precision
    if precision == "fp32" and form not in _LOWER:
        return 0
    stored = _weights(package, component) * _STORED.get(precision, _FLOAT) // _FLOAT
    activations = _activations(package, call, _COSTS[f"{PREPARED_BACKEND} fp32"])
    return round(_IN_FLOAT32 * stored) + activations


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


def _own_form(package: Package, component: str) -> str:
    """The form in which ONNX Runtime keeps the weights of the package's own graph."""
    return f"{PREPARED_BACKEND} {package.manifest.components[component].precision}"


def _weights(package: Package, component: str) -> int:
    """Bytes of a component's weights in float32."""
    files = (package.folder / component).iterdir()
    stored = sum(file.stat().st_size for file in files if file.is_file())
    return stored * _FLOAT // _STORED.get(package.manifest.components[component].precision, 4)


def _in_memory(package: Package, component: str, form: str) -> int:
    """Bytes of a component's weights as a backend uses them, before the factors of _COSTS.

    ONNX Runtime keeps large factors of products in float16 where they are mapped, and converts one
    at a time.
    """
    weights = _weights(package, component)
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
