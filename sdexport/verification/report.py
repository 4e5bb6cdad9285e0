"""The rows of a verification report, and the report as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

METRICS = {
    "relative": "{:.2e}",
    "1 - cosine": "1-cos {:.1e}",
    "of 255": "{:g}/255",
    "PSNR": "{:.1f} dB",
    "files": "{:g}",
}
"""How the error of each metric is formatted: the largest difference relative to the reference's
largest value, 1 - cosine, steps of 255 in an image, decibels between images, altered files."""


@dataclass(frozen=True)
class Check:
    """One row of the report: an error that was measured, and its bound.

    name: of the component, "image", "package" or "configuration".
    output: of the component; "pixels" or "files".
    error: in units of `metric`; None if nothing could be measured, and `note` says why.
    cosine: of the reference and the actual values, -1..1; None if nothing was compared.
    bound: the largest error that passes (the smallest, for PSNR).
    note: why the check failed, if not because of the bound.
    metric: one of METRICS.
    inputs: their sizes, if there are several trials.
    """

    name: str
    output: str
    error: float | None
    cosine: float | None
    bound: float
    note: str = ""
    metric: str = "relative"
    inputs: str = ""

    @property
    def share(self) -> float | None:
        """The error as a share of its bound; above 1 the check fails."""
        if self.error is None:
            return None
        if self.metric == "PSNR":  # higher is better
            return self.bound / self.error if self.error > 0 else math.inf
        return self.error / self.bound

    @property
    def passed(self) -> bool:
        """Whether the error was measured and is within its bound."""
        return not self.note and self.share is not None and self.share <= 1

    @property
    def verdict(self) -> str:
        """Either "ok", or FAILED and the reason."""
        if self.passed:
            return "ok"
        beyond = "" if self.error is None or self.metric == "files" else self._beyond()
        return f"FAILED {self.note or beyond}".rstrip()

    def _beyond(self) -> str:
        word = "under" if self.metric == "PSNR" else "over"
        return f"{self.formatted(self.error)} is {word} {self.formatted(self.bound)}"

    def formatted(self, value: float | None) -> str:
        """An error or a bound of this row with its unit."""
        return "-" if value is None else METRICS[self.metric].format(value)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        return asdict(self) | {"share": self.share, "passed": self.passed}


def table(checks: Sequence[Check]) -> str:
    """The report as aligned text."""
    rows: list[tuple[str, ...]] = [
        ("component", "inputs", "output", "max abs", "cosine", "bound", "share", "verdict")
    ]
    rows += map(_cells, checks)
    if not any(check.inputs for check in checks):
        rows = [(name, *rest) for name, _, *rest in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _cells(check: Check) -> tuple[str, ...]:
    measured = check.error is not None and check.metric != "files"
    return (
        check.name,
        check.inputs,
        check.output,
        check.formatted(check.error) if measured else "-",
        f"{check.cosine:.7f}" if check.cosine is not None else "-",
        check.formatted(check.bound) if measured else "-",
        f"{check.share:.1%}" if measured else "-",
        check.verdict,
    )
