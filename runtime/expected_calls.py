"""How a pipeline will call its components, known before the first one runs.

A backend that compiles for shapes and bound inputs can then do that for one component while another
one works, and `sdexport build` can do it for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sdexport.engines import Session, TensorSpec
from sdexport.engines.errors import PackageError
from sdexport.runtime.models.components import (
    MOST_LEVELS,
    PIXEL_ROLES,
    STEP_ROLES,
    Role,
    is_residual,
    level_dimensions,
    positions_dimension,
)
from sdexport.runtime.packages.package import Package
from sdexport.runtime.text.prompt_embeds import Text

STEP_INPUTS = ("sample", "timestep")
"""Inputs of the denoiser that change from step to step; all others are bound, except residuals of
ControlNets."""
STEP = "step"
"""An input of a denoiser with ControlNets: the index of the step, (1,) int64."""
SHARED_INPUTS = ("sample",)
"""Inputs that are the same for the unconditional and the conditional half of a guided batch."""
_log = logging.getLogger(__name__)
_LONGEST = 250
"""Characters of a prompt that is expected to have one row of tokens; most tokens have four."""
TOKENS = 77
"""Tokens in a row of the text encoder's input."""


@dataclass(frozen=True)
class ImageCall:
    """What is generated: `batch` images at once, of (height, width) pixels.

    guided: whether the denoiser runs on the unconditional half too. tokens: of the prompts, a
    multiple of TOKENS.
    """

    height: int
    width: int
    batch: int = 1
    guided: bool = True
    tokens: int = TOKENS


@dataclass(frozen=True)
class ExpectedCall:
    """The arguments of Session.expect for a component."""

    shapes: dict[str, tuple[int, ...]]
    constants: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


def expected_call(
    package: Package, component: str, specs: Sequence[TensorSpec], call: ImageCall
) -> ExpectedCall:
    """How a component is called for an image.

    Args:
      component: its name, or that of one of its further graphs. specs: inputs of the graph.
    Raises: PackageError: a dimension whose meaning is not known.
    """
    family, unit = package.family, package.manifest.downscale
    role = family.component(component.partition(".")[0]).role
    doubled = role in STEP_ROLES and call.guided and not family.guidance_embedding
    rows = 1 if role is Role.TEXT_ENCODER else call.batch * (2 if doubled else 1)
    scale = 1 if role in PIXEL_ROLES else unit
    tokens = TOKENS if role is Role.TEXT_ENCODER else call.tokens
    sizes = {
        **dict.fromkeys(("batch", "batch_size"), rows),
        **dict.fromkeys(("sequence", "sequence_length"), tokens),
        **dict.fromkeys(("height", "image_height"), call.height // scale),
        **dict.fromkeys(("width", "image_width"), call.width // scale),
        **level_sizes(call.height // unit, call.width // unit),
    }
    shapes = {spec.name: tuple(size_of(component, d, sizes) for d in spec.shape) for spec in specs}
    if role not in STEP_ROLES:
        return ExpectedCall(shapes)
    constants = tuple(name for name in shapes if not is_step_input(name))
    return ExpectedCall(shapes, constants, SHARED_INPUTS if doubled else ())


def expect_call(package: Package, component: str, session: Session, call: ImageCall) -> None:
    """Let a session get ready for an image.

    Raises: EngineError: the engine failed.
    """
    try:
        expected = expected_call(package, component, session.inputs, call)
    except PackageError as error:
        _log.info("%s", error)
        return
    session.expect(expected.shapes, constants=expected.constants, shared=expected.shared)


def is_step_input(name: str) -> bool:
    """Whether an input of a denoiser or of a ControlNet changes from step to step."""
    return name in STEP_INPUTS or is_residual(name)


def level_sizes(height: int, width: int) -> dict[str, int]:
    """Sizes of the dimensions of the smaller levels of a UNet, by name.

    Args:
      height, width: of the latents.
    """
    found: dict[str, int] = {positions_dimension(0): height * width}
    for level in range(1, MOST_LEVELS):
        high, wide = level_dimensions(level)
        found |= {high: -(-height // 2**level), wide: -(-width // 2**level)}
        found[positions_dimension(level)] = found[high] * found[wide]
    return found


def is_short(prompt: Text) -> bool:
    """Whether a prompt is probably one text of at most TOKENS tokens, before it is read."""
    texts = [prompt] if isinstance(prompt, str) else prompt
    return all(len(text) <= _LONGEST and " AND " not in text for text in texts)


def size_of(name: str, dimension: int | str, sizes: dict[str, int]) -> int:
    """The size of a dimension of a graph's input.

    Args:
      name: of the graph or of the input, for the message. sizes: of named dimensions.
    Raises: PackageError: a dimension whose meaning is not known.
    """
    if isinstance(dimension, int):
        return dimension
    if dimension not in sizes:
        raise PackageError(f"{name}: the meaning of the dimension '{dimension}' is not known")
    return sizes[dimension]
