"""Engines for the components of a package: sizes in pixels and pictures become shapes of graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.engines import PREPARED_BACKEND, TensorSpec
from sdexport.engines.cache.engine_store import Built
from sdexport.engines.cache.profiles import Profile, Span, dimension_names
from sdexport.engines.onnx_file.graph_specs import graph_specs
from sdexport.engines.trt.build_options import BuildOptions
from sdexport.engines.trt.engine_build import build_plan
from sdexport.runtime.packages.package import Package

TOKENS = 77
"""The text encoder reads rows of so many tokens; longer prompts are several rows."""
BATCH = Span(1, 1, 4)
PROMPTS = Span(TOKENS, TOKENS, 3 * TOKENS)
_BATCH = ("batch", "batch_size")
_SEQUENCE = ("sequence", "sequence_length")
_ROWS = ("height", "image_height")
_COLUMNS = ("width", "image_width")
Report = Callable[[str, str, float], object]


@dataclass(frozen=True)
class Sizes:
    """What the engines are for.

    batch: pictures at once.
    height, width: pixels; None for half to one and a half of the package's own size.
    tokens: of a prompt, multiples of 77.
    guidance: the UNet gets the unconditional half too, so its batch goes up to twice as many.
    static: add a profile for the best sizes alone, which the builder can tune more closely.
    """

    batch: Span = BATCH
    height: Span | None = None
    width: Span | None = None
    tokens: Span = PROMPTS
    guidance: bool = True
    static: bool = False


def build(
    package: Package,
    *,
    backend: str,
    sizes: Sizes | None = None,
    components: Sequence[str] = (),
    engine_dir: str | Path | None = None,
    options: BuildOptions | None = None,
    timing_cache: str | Path | None = None,
    rebuild_stale: bool = False,
    progress: Report = lambda component, phase, share: None,
) -> list[Built]:
    """Build the engines of a package, one component after the other.

    Args:
      components: which; all of them by default.
      engine_dir: where to write them, instead of the package's own engines folder.
      options, timing_cache, rebuild_stale: see sdexport.engines.trt.engine_build.build_plan.
      progress: called with component, phase and share of that component.
    Raises: ValueError: sizes that do not fit. What build_plan raises.
    """
    sizes = sizes or Sizes()
    names = list(components) or list(package.manifest.components)
    planned = [(name, profiles(package, name, sizes)) for name in names]
    built = []
    for name, wanted in planned:

        def tell(phase: str, share: float, name: str = name) -> None:
            progress(name, phase, share)

        built.append(
            build_plan(
                package.model_path(name),
                package.plan_path(name, backend, engine_dir),
                backend=backend,
                profiles=wanted,
                options=options,
                digest=package.model_digest(name),
                timing_cache=timing_cache,
                rebuild_stale=rebuild_stale,
                progress=tell,
            )
        )
        progress(name, "done", 1.0)
    return built


def prepare(
    package: Package,
    *,
    components: Sequence[str] = (),
    engine_dir: str | Path | None = None,
    rebuild_stale: bool = False,
    progress: Report = lambda component, phase, share: None,
) -> list[Built]:
    """Prepare the graphs of a package for ONNX Runtime on this processor; see prepare_onnxruntime.

    Args, Raises: those of `build` and of sdexport.builds.prepare_onnxruntime.prepare.
    """
    from sdexport.builds.prepare_onnxruntime import prepare as run

    names = list(components) or list(package.manifest.components)
    paths = {name: package.model_path(name) for name in names}
    made: list[Built] = []
    for name, path in paths.items():
        progress(name, "prepare", len(made) / len(paths))
        made.append(
            run(
                path,
                package.plan_path(name, PREPARED_BACKEND, engine_dir),
                component=name,
                digest=package.model_digest(name),
                rebuild_stale=rebuild_stale,
            )
        )
    return made


def profiles(package: Package, component: str, sizes: Sizes) -> list[Profile]:
    """The sizes of a component's dynamic dimensions, a fixed set first if `sizes.static`.

    Raises: ValueError: sizes that are no multiples of what the model needs, or a dimension whose
      meaning is not known.
    """
    inputs, _ = graph_specs(package.model_path(component))
    names = dimension_names(inputs)
    spans = {name: _span(package, component, inputs, name, sizes) for name in names}
    found: list[Profile] = [spans]
    fixed = {name: Span(span.opt, span.opt, span.opt) for name, span in spans.items()}
    if sizes.static and fixed != spans:
        found.insert(0, fixed)
    return found


def _span(
    package: Package, component: str, inputs: Sequence[TensorSpec], name: str, sizes: Sizes
) -> Span:
    manifest = package.manifest
    unit = manifest.downscale
    if name in _BATCH:
        return _batch(component, sizes)
    if name in _SEQUENCE:
        tokens = sizes.tokens
        tokens.divided(TOKENS, "tokens")
        return Span(TOKENS, TOKENS, TOKENS) if component.startswith("text_encoder") else tokens
    if name in (*_ROWS, *_COLUMNS):
        upright = name in _ROWS
        given = sizes.height if upright else sizes.width
        own = manifest.default_size[0 if upright else 1]
        span = given or Span(*(max(own * n // 2 // unit, 1) * unit for n in (1, 2, 3)))
        cells = span.divided(unit, "height" if upright else "width")
        return span if component == "vae_encoder" else cells
    known = dimension_names(inputs)
    raise ValueError(
        f"{component}: what the dimension '{name}' stands for is not known; "
        f"the dynamic dimensions are {', '.join(known)}"
    )


def _batch(component: str, sizes: Sizes) -> Span:
    batch = sizes.batch
    if component.startswith("vae"):
        return batch
    most = 2 if sizes.guidance else 1
    if component.startswith("text_encoder"):  # the pipeline gives it one row at a time
        return Span(1, 1, batch.max * most * sizes.tokens.max // TOKENS)
    return Span(batch.min, batch.opt * most, batch.max * most)


def report(built: Sequence[Built]) -> list[dict[str, Any]]:
    """What was done, for JSON."""
    return [
        {
            "component": b.sidecar.component,
            "plan": str(b.plan),
            "built": b.built,
            "seconds": round(b.seconds, 2),
            "size": b.sidecar.size,
            "library": f"{b.sidecar.backend} {b.sidecar.library_version}",
            "profiles": [{n: str(s) for n, s in p.items()} for p in b.sidecar.profiles],
        }
        for b in built
    ]
