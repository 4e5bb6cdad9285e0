"""The rows of a verification report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MEASURES = {
    "relative_l2": ("relative L2", "{:.1e}"),
    "max_abs": ("max abs", "{:.1e}"),
    "float32_relative_l2": ("relative L2 in float32", "{:.1e}"),
    "float32_max_abs": ("max abs in float32", "{:.1e}"),
    "image_max": ("largest difference", "{:g}/255"),
    "image_rms": ("RMS difference", "{:.2g}/255"),
    "altered_files": ("altered files", "{:g}"),
}
"""The name and the format of each measure. All are 0 for a perfect result.

relative_l2: the norm of the difference from PyTorch's output, over the norm of that output.
max_abs: the largest difference from PyTorch's output, over the largest value of that output.
float32_relative_l2, float32_max_abs: the same, of the graph computed in float32 from its weights as
they are stored, and from what that gave at export; see float32_outputs.py.
image_max, image_rms: largest and root mean square difference of the pixels, in steps of 255.
altered_files: the number of files whose hash is not the manifest's.
"""


@dataclass(frozen=True)
class Measure:
    """One number of a row, and its limit.

    kind: one of MEASURES.
    value: what was measured, 0 or more; None for NaN or infinity.
    limit: the largest value that passes.
    """

    kind: str
    value: float | None
    limit: float

    @property
    def share(self) -> float:
        """The value as a share of its limit; above 1 the check fails."""
        if self.value is None or math.isnan(self.value):
            return math.inf
        if self.value == 0:
            return 0.0
        return self.value / self.limit if self.limit > 0 else math.inf

    @property
    def label(self) -> str:
        """The name of the measure in a report."""
        return MEASURES[self.kind][0]

    def formatted(self, value: float | None) -> str:
        """A value or limit of this measure as text, such as 3e-6."""
        if value is None or value == 0:
            return "-" if value is None else "0"
        text = MEASURES[self.kind][1].format(value)
        return re.sub(r"(?:\.0)?e([+-])0*", lambda found: f"e{found[1].strip('+')}", text)

    def __str__(self) -> str:
        shown = self.formatted(self.value)
        return f"{self.label} {shown} of the limit {self.formatted(self.limit)}"

    def to_dict(self) -> dict[str, Any]:
        """The measure as JSON values."""
        share = self.share if math.isfinite(self.share) else None
        return asdict(self) | {"share": share, "passed": self.share <= 1}


@dataclass(frozen=True)
class Check:
    """One row of the report: what was measured, each with its limit.

    name: of the component, "image", "package" or "configuration".
    output: of the component; "pixels" or "files".
    measures: empty if nothing could be measured, and `note` says why.
    note: why the check failed, if not because of a limit.
    inputs: their sizes, if there are several trials.
    way: how a graph was run, such as "bound inputs"; "" for a plain call.
    file: that was run, within the package where it is. form: "" for an ONNX graph of the package,
      else "prepared" or "plan".
    backend: that ran it, with the options that change its arithmetic.
    compared_with: "" for PyTorch's reference outputs, else where the expected outputs come from.
    remark: what else there is to say, such as why a prepared graph was not run.
    statistics: mean, std, min and max of the expected and the actual values; None: not finite.
    """

    name: str
    output: str
    measures: tuple[Measure, ...] = ()
    note: str = ""
    inputs: str = ""
    way: str = ""
    file: str = ""
    form: str = ""
    backend: str = ""
    compared_with: str = ""
    remark: str = ""
    statistics: Mapping[str, float | None] = field(default_factory=dict, repr=False)

    @property
    def worst(self) -> Measure | None:
        """The measure that is nearest to its limit, or furthest beyond it."""
        return max(self.measures, key=lambda measure: measure.share, default=None)

    @property
    def share(self) -> float | None:
        """The largest share of a limit; above 1 the check fails. None: nothing was measured."""
        return None if self.worst is None else self.worst.share

    @property
    def passed(self) -> bool:
        """Whether something was measured, and everything that was is within its limit."""
        return not self.note and self.share is not None and self.share <= 1

    @property
    def verdict(self) -> str:
        """Either "ok", or FAILED and the reason."""
        if self.passed:
            return "ok"
        beyond = [str(measure) for measure in self.measures if measure.share > 1]
        return f"FAILED {self.note or ', '.join(beyond)}".rstrip()

    def value(self, kind: str) -> float | None:
        """The value of one of MEASURES; None if it was not measured."""
        return next((m.value for m in self.measures if m.kind == kind), None)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        share = self.share if self.share is not None and math.isfinite(self.share) else None
        return {
            "name": self.name,
            "output": self.output,
            "inputs": self.inputs,
            "measures": [measure.to_dict() for measure in self.measures],
            "share": share,
            "passed": self.passed,
            "note": self.note,
            "way": self.way,
            "file": self.file,
            "form": self.form,
            "backend": self.backend,
            "compared_with": self.compared_with,
            "remark": self.remark,
            "statistics": dict(self.statistics),
        }
