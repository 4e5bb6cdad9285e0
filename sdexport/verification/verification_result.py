"""What a verification found: its checks, what it could not check, and the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np

from sdexport.verification.report import Check


@dataclass(frozen=True, eq=False)
class ImagePair:
    """The reference image and this machine's, (H, W, 3) uint8; the latter is None if it failed.

    caption: what they show, and how they were generated.
    """

    reference: np.ndarray
    generated: np.ndarray | None = None
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Verification(Sequence[Check]):
    """The checks of a package, as a sequence of them, and what belongs to their report.

    checks: one for each hash check, each output of a graph, and the image.
    not_checked: what was not checked, and why, in words.
    images: the reference image and this machine's; None if the package has no reference image.
    about: what was verified, where and with what; shown in the report and in JSON.

    Example:
        >>> import sdexport
        >>> verification = sdexport.verify("package")
        >>> verification.passed, len(verification) > 10
        (True, True)
    """

    checks: tuple[Check, ...]
    not_checked: tuple[str, ...] = ()
    images: ImagePair | None = field(default=None, repr=False)
    about: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def passed(self) -> bool:
        """Whether every check passed, and there is at least one."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    def __len__(self) -> int:
        return len(self.checks)

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    @overload
    def __getitem__(self, index: int) -> Check: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Check, ...]: ...
    def __getitem__(self, index: int | slice) -> Check | tuple[Check, ...]:
        return self.checks[index]

    def with_checks(self, checks: Sequence[Check]) -> Verification:
        """The same with further checks after its own."""
        return replace(self, checks=(*self.checks, *checks))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, as JSON values."""
        return {
            "passed": self.passed,
            "checks": [check.to_dict() for check in self.checks],
            "not_checked": list(self.not_checked),
            "about": dict(self.about),
        }

    def html(self) -> str:
        """The report as one HTML document that needs no other file."""
        from sdexport.verification.html_report import html_report

        return html_report(self)
