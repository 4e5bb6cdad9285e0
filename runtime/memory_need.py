"""How much memory a pipeline will need, from the package, the image's size and the backend.

The peak of the process is estimated component by component, in the order in which they are opened:
weights in the form that the backend keeps, what opening needs besides, and the largest
intermediate tensors of a call; see component_memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sdexport.engines import PREPARED_BACKEND
from sdexport.runtime.adapters.adapter_memory import Kinds, graph_for
from sdexport.runtime.component_backends import Backends
from sdexport.runtime.component_memory import (
    OPENVINO,
    PREPARED,
    Call,
    float32_session,
    form_of,
    held_by,
    own_form,
    weights_of,
)
from sdexport.runtime.models.components import STEP_ROLES, AdapterKind, Role
from sdexport.runtime.models.controlnet import is_xs
from sdexport.runtime.packages.package import Package

PYTHON = 70_000_000
"""Bytes of the interpreter, NumPy and a backend's library."""
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
    """The components of an adapter that images need; see image_calls for the arguments.

    Those that the package has: what is no adapter is rejected when it is opened.
    """
    unit = package.manifest.downscale
    size = -(-height // unit), -(-width // unit)
    return [
        Call(spec.name, batch * (2 if guided and spec.role in STEP_ROLES else 1), *size)
        for spec in package.family.components
        if spec.name in package.manifest.components
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
        form = form_of(package, call.component, backends, options)
        if low_memory:
            kept = {}
        for name in [name for name in kept if _is_done(package, name, component, form, options)]:
            del kept[name]
        base = PYTHON + sum(kept.values())
        if call.in_float32:
            peak = max(peak, base + float32_session(package, call, form))
            continue
        if call.unprepared:
            if form != PREPARED:
                continue
            form = own_form(package, component)
        is_open = call.component in kept and not call.unprepared
        held = held_by(package, call, form, is_open=is_open)
        if held is None:
            return None
        if not low_memory:
            base += _opened_meanwhile(package, component, kept, backends, options)
        peak = max(peak, base + held.opening, base + held.kept)
        if not call.unprepared:  # arenas are not given back
            kept[call.component] = kept.get(call.component, 0) + held.kept
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
    form = form_of(package, decoder, backends, options)
    if not form.startswith(OPENVINO):
        return 0
    held = held_by(package, Call(decoder, 0, 0, 0), form, is_open=False)
    return held.kept if held else 0


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
        return (_BUILD_CONVERTED if is_more else _BUILDS[key]) * weights_of(package, name)

    return PYTHON + round(max(map(of, names)))
