"""The sizes that an engine is built for: profiles with a range for every dynamic dimension."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.session import ANY_SIZE, TensorSpec

MAX_SIZE = 2**20


@dataclass(frozen=True)
class Span:
    """Sizes of one dimension: from min to max, with the best speed at opt.

    Raises: InvalidArgumentError: not 1 <= min <= opt <= max.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max <= MAX_SIZE:
            raise InvalidArgumentError(
                f"{self} is not a span: expected 1 <= MIN <= OPT <= MAX <= {MAX_SIZE}"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "MIN:OPT:MAX", or one number for a fixed size.

        Raises: InvalidArgumentError: neither of the two.
        """
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(p.isascii() and p.isdigit() for p in parts):
            raise InvalidArgumentError(
                f"{text!r:.60} is not a span: expected MIN:OPT:MAX or one number"
            )
        if max(map(len, parts)) > 9:
            raise InvalidArgumentError(f"{text!r:.60} is not a span: sizes go up to {MAX_SIZE}")
        numbers = [int(p) for p in parts]
        return cls(*numbers) if len(numbers) == 3 else cls(*numbers * 3)

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max

    def scaled(self, factor: int) -> Span:
        """The span with all sizes multiplied."""
        return Span(self.min * factor, self.opt * factor, self.max * factor)

    def divided(self, unit: int, what: str) -> Span:
        """The span in units.

        Raises: InvalidArgumentError: a size is not a multiple of `unit`.
        """
        for size in (self.min, self.opt, self.max):
            if size % unit:
                raise InvalidArgumentError(f"{what} {self}: {size} is not a multiple of {unit}")
        return Span(self.min // unit, self.opt // unit, self.max // unit)


Profile = Mapping[str, Span]
"""Dimension name -> sizes."""


def show(profile: Mapping[str, Any]) -> str:
    """A profile in one line: each dimension with its span.

    Dimensions of layers, whose names have dots, are one if their last parts and their spans are.
    """
    spans = {
        (f"*.{name.rpartition('.')[2]}" if "." in name else name, str(span)): None
        for name, span in profile.items()
    }
    return ", ".join(f"{name} {span}" for name, span in spans)


def dimension_names(inputs: Sequence[TensorSpec]) -> list[str]:
    """Names of the dynamic dimensions, in the order of the inputs."""
    return list(dict.fromkeys(d for spec in inputs for d in spec.shape if isinstance(d, str)))


def check_profiles(
    component: str, inputs: Sequence[TensorSpec], profiles: Sequence[Profile]
) -> None:
    """Check that every profile has exactly the dynamic dimensions of the inputs.

    Raises: InvalidArgumentError: there is no profile, or one has other dimensions.
    """
    names = dimension_names(inputs)
    if ANY_SIZE in names:
        raise InvalidArgumentError(
            f"{component}: the graph has dynamic dimensions without a name; "
            "an engine can only be built for named ones"
        )
    if not profiles:
        raise InvalidArgumentError(f"{component}: no profile; give sizes for {', '.join(names)}")
    for profile in profiles:
        missing = [name for name in names if name not in profile]
        extra = [name for name in profile if name not in names]
        if missing or extra:
            problem = f"no sizes for {missing[0]}" if missing else f"there is no {extra[0]}"
            raise InvalidArgumentError(
                f"{component}: {problem}; the dynamic dimensions are {', '.join(names) or 'none'}"
            )


def input_shapes(
    spec: TensorSpec, profile: Profile
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Smallest, best and largest shape of one input."""
    spans = [Span(d, d, d) if isinstance(d, int) else profile[d] for d in spec.shape]
    return (
        tuple(span.min for span in spans),
        tuple(span.opt for span in spans),
        tuple(span.max for span in spans),
    )


def narrowest(component: str, profiles: Sequence[Profile], sizes: Mapping[str, int]) -> int:
    """Index of the narrowest profile that contains `sizes`.

    Raises: InvalidArgumentError: none does; the message lists them.
    """
    fitting = [
        index
        for index, profile in enumerate(profiles)
        if all(sizes[name] in span for name, span in profile.items())
    ]
    if not fitting:
        wanted = show(sizes)
        listed = "; ".join(show(profile) for profile in profiles)
        raise InvalidArgumentError(
            f"{component}: the engine was not built for {wanted}; it was built for {listed}"
        )

    def combinations(index: int) -> int:
        return math.prod(span.max - span.min + 1 for span in profiles[index].values())

    return min(fitting, key=combinations)


def nearest(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of a profile that are nearest to `sizes`: themselves if one contains them."""

    def clamped(profile: Profile) -> dict[str, int]:
        spans = {name: profile.get(name, Span(size, size, size)) for name, size in sizes.items()}
        return {name: min(max(sizes[name], span.min), span.max) for name, span in spans.items()}

    def distance(found: Mapping[str, int]) -> float:
        return sum(abs(math.log(found[name] / size)) for name, size in sizes.items())

    return min(map(clamped, profiles), key=distance)
