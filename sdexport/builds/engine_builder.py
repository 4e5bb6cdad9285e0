"""Build engines for the components of a package: pixels and images become shapes of graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from sdexport.engines import PLAN_BACKENDS, PREPARED_BACKEND, TensorSpec
from sdexport.engines.cache.engine_store import Built
from sdexport.engines.cache.profiles import Profile, Span, dimension_names
from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.ov.compiled_graph import BACKEND as OPENVINO
from sdexport.engines.trt.build_options import BuildOptions
from sdexport.engines.trt.engine_build import build_plan
from sdexport.runtime.adapters.ip_inputs import GROUPS
from sdexport.runtime.adapters.ip_inputs import TOKENS as TOKENS_OF_IMAGES
from sdexport.runtime.adapters.lora_inputs import ROWS, TAKE_LORAS, rank_multiple
from sdexport.runtime.component_engines import engine_path, package_binding
from sdexport.runtime.expected_calls import ImageCall, level_sizes
from sdexport.runtime.models.components import PIXEL_ROLES, Role, lora_graph
from sdexport.runtime.packages.package import Package

TOKENS = 77
"""Tokens in a row of the text encoder's input; longer prompts are several rows."""
BATCH = Span(1, 1, 4)
PROMPTS = Span(TOKENS, TOKENS, 3 * TOKENS)
LORA_RANK = Span(1, 16, 128)
IMAGE_GROUPS, IMAGE_TOKENS = Span(1, 1, 4), Span(1, 16, 257)
"""Of IP-Adapters: attentions to images of their own, and the tokens of one. 257 is one image of a
full adapter, or up to 64 images of 4 tokens."""
_BATCH = ("batch", "batch_size")
_SEQUENCE = ("sequence", "sequence_length")
_ROWS = ("height", "image_height")
_COLUMNS = ("width", "image_width")
_LATENTS = ("height", "width")
Report = Callable[[str, str, float], object]
"""Called with component, phase and the completed share, 0..1: for TensorRT of that component, for
prepared graphs of all components."""


@dataclass(frozen=True)
class EngineSizes:
    """The sizes that engines are built for.

    batch: images at once.
    height, width: in pixels; None for half to one and a half of the package's default size.
    tokens: of a prompt, multiples of 77.
    lora_rank: the ranks of the LoRAs of a call together.
    guidance: the UNet's batch holds the unconditional half too, so it is twice as large.
    static: add a profile for the best sizes only, which the builder can tune more closely.
    """

    batch: Span = BATCH
    height: Span | None = None
    width: Span | None = None
    tokens: Span = PROMPTS
    lora_rank: Span = LORA_RANK
    guidance: bool = True
    static: bool = False


def build(
    package: Package | str | Path,
    backend: str = PREPARED_BACKEND,
    *,
    components: Sequence[str] = (),
    engine_dir: str | Path | None = None,
    rebuild_stale: bool = False,
    progress: Report = lambda component, phase, share: None,
    **options: Any,
) -> list[Built]:
    """Build the engines of a package, one component after the other.

    Args:
      package: the package or its folder.
      backend: "onnxruntime" and "openvino" prepare graphs for this processor, which open faster and
        take less memory; "tensorrt" and "tensorrt-rtx" build engines for a GPU.
      components: their names; all of them by default, for TensorRT-RTX also the graphs that take
        LoRAs, such as "unet.lora". Those of other adapters, such as "unet.controlnet", are built
        if they are named.
      engine_dir: where to write the engines; by default the package's own engines folder.
      rebuild_stale: replace an engine that was built from or for something else.
      progress: see Report.
      options: for TensorRT those of `build_engines`: sizes, options, timing_cache; for OpenVINO
        those of `prepare_openvino`: sizes, precision.
    Returns: for each component its engine, and whether it had to be built.
    Raises: InvalidArgumentError: a backend without engines, an unknown option, or sizes that do not
      fit. FileNotFoundError: no such folder. PackageError: no package, or no such component.
      MissingDependencyError: the library is not installed. EngineError: the build failed, or a
      stale engine is there and `rebuild_stale` is False.

    Example:
        >>> import sdexport
        >>> engines = sdexport.build("package", "onnxruntime", components=["vae_decoder"])
        >>> [engine.plan.name for engine in engines]
        ['vae_decoder.onnx']
    """
    loaded = package if isinstance(package, Package) else Package.load(package)
    common: dict[str, Any] = {
        "components": components,
        "engine_dir": engine_dir,
        "rebuild_stale": rebuild_stale,
        "progress": progress,
    }
    if backend in PLAN_BACKENDS:
        return build_engines(loaded, backend=backend, **common, **options)
    if backend == OPENVINO:
        return prepare_openvino(loaded, **common, **options)
    if backend != PREPARED_BACKEND:
        raise InvalidArgumentError(
            f"{backend} has no engines to build; "
            f"choose one of {', '.join((PREPARED_BACKEND, OPENVINO, *PLAN_BACKENDS))}"
        )
    if options:
        raise InvalidArgumentError(f"{backend} takes no {', '.join(options)}")
    return prepare_package(loaded, **common)


def build_engines(
    package: Package,
    *,
    backend: str,
    sizes: EngineSizes | None = None,
    components: Sequence[str] = (),
    engine_dir: str | Path | None = None,
    options: BuildOptions | None = None,
    timing_cache: str | Path | None = None,
    rebuild_stale: bool = False,
    progress: Report = lambda component, phase, share: None,
) -> list[Built]:
    """Build TensorRT or TensorRT-RTX engines.

    Args:
      backend: "tensorrt" or "tensorrt-rtx".
      sizes: the sizes that the engines accept.
      options, timing_cache: see sdexport.engines.trt.engine_build.build_plan.
    Other arguments and errors: those of `build`.
    """
    sizes = sizes or EngineSizes()
    names = list(components) or _graphs(package, backend)
    planned = [(name, profiles(package, name, sizes)) for name in names]
    engines = []
    for name, wanted in planned:

        def report_phase(phase: str, share: float, name: str = name) -> None:
            progress(name, phase, share)

        engine = build_plan(
            package.model_path(name),
            engine_path(package, name, backend, engine_dir),
            backend=backend,
            profiles=wanted,
            options=options,
            digest=package.model_digest(name),
            package=package_binding(package),
            timing_cache=timing_cache,
            rebuild_stale=rebuild_stale,
            progress=report_phase,
        )
        engines.append(engine)
        progress(name, "done", 1.0)
    return engines


def _graphs(package: Package, backend: str) -> list[str]:
    """The graphs that get an engine: every component, and what takes LoRAs in place of one."""
    components = list(package.manifest.components)
    loras = [lora_graph(name) for name in components if backend in TAKE_LORAS]
    return components + [graph for graph in loras if graph in package.graphs]


def prepare_package(
    package: Package,
    *,
    components: Sequence[str] = (),
    engine_dir: str | Path | None = None,
    rebuild_stale: bool = False,
    progress: Report = lambda component, phase, share: None,
) -> list[Built]:
    """Prepare the graphs of a package for ONNX Runtime on this processor; see prepare_onnxruntime.

    Arguments and errors: those of `build`.
    """
    from sdexport.builds.prepare_onnxruntime import prepare_graph

    names = list(components) or list(package.manifest.components)
    paths = {name: package.model_path(name) for name in names}
    engines: list[Built] = []
    for name, path in paths.items():
        progress(name, "prepare", len(engines) / len(paths))
        engine = prepare_graph(
            path,
            engine_path(package, name, PREPARED_BACKEND, engine_dir),
            component=name,
            digest=package.model_digest(name),
            package=package_binding(package),
            rebuild_stale=rebuild_stale,
        )
        engines.append(engine)
    return engines


def prepare_openvino(
    package: Package,
    *,
    sizes: EngineSizes | None = None,
    precision: str = "f32",
    components: Sequence[str] = (),
    engine_dir: str | Path | None = None,
    rebuild_stale: bool = False,
    progress: Report = lambda component, phase, share: None,
) -> list[Built]:
    """Prepare the graphs of a package for OpenVINO on this processor; see builds.prepare_openvino.

    Args:
      sizes: one size each; by default one image of the package's default size. Graphs that were
        prepared for other sizes stay.
      precision: of the arithmetic: f32, bf16, f16 or i8.
    Other arguments and errors: those of `build`.
    """
    from sdexport.builds.prepare_openvino import OpenVinoBuild, prepare_component

    wanted = OpenVinoBuild(_one_call(package, sizes or EngineSizes()), precision)
    names = list(components) or list(package.manifest.components)
    for name in names:
        package.model_path(name)  # so that an unknown one is an error before the first is built
    engines: list[Built] = []
    for name in names:
        progress(name, "prepare", len(engines) / len(names))
        engines.append(
            prepare_component(
                package, name, wanted, engine_dir=engine_dir, rebuild_stale=rebuild_stale
            )
        )
    return engines


def _one_call(package: Package, sizes: EngineSizes) -> ImageCall:
    """The images that sizes describe.

    Raises: InvalidArgumentError: more than one size, or no multiple of what the model needs.
    """
    height, width = package.manifest.default_size
    spans = {
        "batch": Span(1, 1, 1) if sizes.batch == BATCH else sizes.batch,
        "height": sizes.height or Span(height, height, height),
        "width": sizes.width or Span(width, width, width),
        "tokens": Span(TOKENS, TOKENS, TOKENS) if sizes.tokens == PROMPTS else sizes.tokens,
    }
    for name, span in spans.items():
        if span.min != span.max:
            raise InvalidArgumentError(
                f"{name} is {span}: OpenVINO prepares for one size at a time; give one number"
            )
    spans["tokens"].divided(TOKENS, "tokens")
    for name in ("height", "width"):
        spans[name].divided(package.manifest.downscale, name)
    return ImageCall(
        **{name: span.opt for name, span in spans.items()},
        guided=sizes.guidance and not package.family.guidance_embedding,
    )


def profiles(package: Package, component: str, sizes: EngineSizes) -> list[Profile]:
    """Profiles for a component's dynamic dimensions, the static one first if `sizes.static`.

    Raises: InvalidArgumentError: sizes that are not multiples of what the model needs.
      PackageError: the graph has an unknown dimension.
    """
    inputs, _ = graph_specs(package.model_path(component))
    names = dimension_names(inputs)
    spans = {name: _span(package, component, inputs, name, sizes) for name in names}
    static = {name: Span(span.opt, span.opt, span.opt) for name, span in spans.items()}
    return [static, spans] if sizes.static and static != spans else [spans]


def _span(
    package: Package, component: str, inputs: Sequence[TensorSpec], name: str, sizes: EngineSizes
) -> Span:
    """The sizes of one dimension, by its name."""
    manifest = package.manifest
    role = package.family.component(component.partition(".")[0]).role
    unit = manifest.downscale
    if (rank := rank_multiple(name)) is not None:
        return sizes.lora_rank.scaled(rank)
    if name == ROWS:  # every image has the same scale
        return Span(1, 1, 1)
    if name in _BATCH:
        return _batch(role, sizes)
    if name in (GROUPS, TOKENS_OF_IMAGES):
        return IMAGE_GROUPS if name == GROUPS else IMAGE_TOKENS
    if name in _SEQUENCE:
        tokens = sizes.tokens
        tokens.divided(TOKENS, "tokens")
        return Span(TOKENS, TOKENS, TOKENS) if role is Role.TEXT_ENCODER else tokens
    if name in (*_ROWS, *_COLUMNS):
        vertical = name in _ROWS
        default = manifest.default_size[0 if vertical else 1]
        pixels = sizes.height if vertical else sizes.width
        if pixels is None:
            pixels = Span(*(max(default * n // 2 // unit, 1) * unit for n in (1, 2, 3)))
        cells = pixels.divided(unit, "height" if vertical else "width")
        return pixels if role in PIXEL_ROLES else cells
    if name in level_sizes(1, 1):
        high, wide = (_span(package, component, inputs, side, sizes) for side in _LATENTS)
        pairs = zip(astuple(high), astuple(wide), strict=True)
        return Span(*(level_sizes(*pair)[name] for pair in pairs))
    known = dimension_names(inputs)
    raise PackageError(
        f"{component}: the meaning of the dimension '{name}' is not known; "
        f"the dynamic dimensions are {', '.join(known)}"
    )


def _batch(role: Role, sizes: EngineSizes) -> Span:
    batch = sizes.batch
    if role in (Role.VAE_DECODER, Role.SAFETY_CHECKER) or role in PIXEL_ROLES:
        return batch
    factor = 2 if sizes.guidance else 1
    if role is Role.TEXT_ENCODER:  # the pipeline runs it with one row at a time
        return Span(1, 1, batch.max * factor * sizes.tokens.max // TOKENS)
    return Span(batch.min, batch.opt * factor, batch.max * factor)


def report(engines: Sequence[Built]) -> list[dict[str, Any]]:
    """The result of `build` as JSON values."""
    return [
        {
            "component": engine.sidecar.component,
            "plan": str(engine.plan),
            "built": engine.built,
            "seconds": round(engine.seconds, 2),
            "size": engine.sidecar.size,
            "library": f"{engine.sidecar.backend} {engine.sidecar.library_version}",
            "profiles": [{n: str(s) for n, s in p.items()} for p in engine.sidecar.profiles],
        }
        for engine in engines
    ]
