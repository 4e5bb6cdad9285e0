"""Does a package still answer as PyTorch did? Replays the recorded answers, without PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdexport.engines import EngineError
from sdexport.engines.errors import PackageError
from sdexport.engines.files import sha256_of
from sdexport.runtime.backend_choice import Backends, backend_of
from sdexport.runtime.packages.package import Package
from sdexport.runtime.pipeline import Pipeline

COMPONENT_BOUND = 5e-5
"""Largest difference over the output's largest value. Two float32 kernels that sum a few thousand
products in another order differ by 1e-6 to 1e-5 after some sixty layers: 8.3e-6 measured at most,
in SD 1.5's VAE decoder. A tenth more on one weight tensor of the embedded UNet shows as 2.9e-4."""
EXACT = ("fp32", "unknown")
"""Precisions that must answer as PyTorch's float32 does."""
PICTURE_BOUND = 1
"""Steps of 255. Rounding to 8 bits may fall to either side of a half, never further."""
HALF_COMPONENT_BOUND = 1e-3
"""1 - cosine of a component in a lower precision."""
PICTURE_DECIBELS = {"fp16": 35.0, "bf16": 25.0, "int8": 25.0}
"""PSNR between pictures. bfloat16 has three bits less than half and weights of int8 four: 18 and 24
decibels, were all else equal; the embedded model loses 21 and 20 and stays at 45."""


METRICS = {
    "relative": "{:.2e}",
    "1 - cosine": "1-cos {:.1e}",
    "of 255": "{:g}/255",
    "PSNR": "{:.1f} dB",
    "files": "{:g}",
}
"""How figures are shown: the largest difference over the output's largest value, 1 - cosine, steps
of 255 in a picture, decibels between pictures, altered files."""


@dataclass(frozen=True)
class Check:
    """One row of the report: what was measured, and the share of its bound that it used.

    error: in units of `metric`, None where nothing could be measured and `note` says why.
    metric: one of METRICS.
    inputs: their sizes, where there are several trials.
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
        if self.error is None:
            return None
        if self.metric == "PSNR":  # the more the better
            return self.bound / self.error if self.error > 0 else math.inf
        return self.error / self.bound

    @property
    def passed(self) -> bool:
        return not self.note and self.share is not None and self.share <= 1

    @property
    def verdict(self) -> str:
        if self.passed:
            return "ok"
        beyond = "" if self.error is None or self.metric == "files" else self._beyond()
        return f"FAILED {self.note or beyond}".rstrip()

    def _beyond(self) -> str:
        word = "under" if self.metric == "PSNR" else "over"
        return f"{self.shown(self.error)} is {word} {self.shown(self.bound)}"

    def shown(self, value: float | None) -> str:
        """A figure of this row with its unit."""
        return "-" if value is None else METRICS[self.metric].format(value)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"share": self.share, "passed": self.passed}


Progress = Callable[[str], object]


def verify(
    folder: str | Path,
    backend: Backends = "onnxruntime",
    *,
    progress: Progress = lambda what: None,
    **options: Any,
) -> list[Check]:
    """Check every file's hash, replay every component and paint the recorded picture.

    Args:
      progress: called with what is checked next: "hashes", each component, "picture".
      backend, options: how components are opened; see sdexport.engines.open_session.
    Raises: FileNotFoundError, PackageError: no package, or one that misses files.
    """
    package = Package.load(folder, verify=False)
    return verify_package(package, backend, progress=progress, **options)


def verify_package(
    package: Package,
    backend: Backends = "onnxruntime",
    *,
    hashes: bool = True,
    progress: Progress = lambda what: None,
    **options: Any,
) -> list[Check]:
    """Like `verify`, for a package that is loaded already.

    Args:
      hashes: False leaves them out, for files that were written just now.
    """
    checks = []
    if hashes:
        progress("hashes")
        checks = [_hash_check(package, name) for name in ("package", *package.manifest.components)]
    references = {p.stem: p for p in sorted((package.folder / "reference").glob("*.npz"))}
    if not references:
        raise PackageError(f"{package.folder} holds no recorded answers (reference/*.npz)")
    with Pipeline(package, backend, **options) as pipeline:
        for name in package.graphs:
            if name in package.manifest.components:
                progress(name)
            if package.runs_itself(name, backend_of(backend, name), options.get("engine_dir")):
                checks += _replay(pipeline, name, references.get(name))
        progress("picture")
        checks.append(_repaint(pipeline, references.get("picture")))
    return checks


def compare(expected: np.ndarray, actual: np.ndarray) -> tuple[float | None, float]:
    """Largest difference relative to the largest expected value, and the cosine of the two.

    Not finite values on either side give None for the difference.
    """
    a, b = expected.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None, 0.0
    scale = float(np.abs(a).max()) or 1.0
    norms = float(np.linalg.norm(a) * np.linalg.norm(b)) or 1.0
    return float(np.abs(a - b).max()) / scale, float(a @ b) / norms


def _hash_check(package: Package, name: str) -> Check:
    manifest = package.manifest
    records = manifest.files if name == "package" else manifest.components[name].files
    altered = [r.path for r in records if sha256_of(package.folder / r.path) != r.sha256]
    note = f"altered: {', '.join(altered)}" if altered else ""
    return Check(name, "files", float(len(altered)), None, 1e-9, note, "files")


def _replay(pipeline: Pipeline, name: str, path: Path | None) -> list[Check]:
    precision = pipeline.package.manifest.components[name.partition(".")[0]].precision
    if path is None:
        return [failed_check(name, "no recorded answer")]
    try:
        arrays = _read_arrays(path)
        answers = pipeline.session(name).run(_named(arrays, "input."))
    except (EngineError, PackageError, ValueError) as failure:
        return [failed_check(name, str(failure))]
    expected = _named(arrays, "output.")
    if not expected:
        return [failed_check(name, "the recorded answer is empty")]
    return compared(name, precision, expected, answers)


def compared(
    name: str,
    precision: str,
    expected: Mapping[str, np.ndarray],
    answers: Mapping[str, np.ndarray],
    *,
    inputs: str = "",
) -> list[Check]:
    """A row for each expected output of a component, with the bound of its precision."""
    checks = []
    for output, value in expected.items():
        actual = answers.get(output)
        if actual is None or actual.shape != value.shape:
            checks.append(failed_check(name, "missing, or of another shape", output, inputs))
            continue
        error, cosine = compare(value, actual)
        note = "NaN or infinity" if error is None else ""
        bound, metric = COMPONENT_BOUND, "relative"
        if precision not in EXACT:
            error = None if error is None else max(0.0, 1 - cosine)
            bound, metric = HALF_COMPONENT_BOUND, "1 - cosine"
        checks.append(Check(name, output, error, cosine, bound, note, metric, inputs))
    return checks


def failed_check(name: str, note: str, output: str = "-", inputs: str = "") -> Check:
    """A row for what could not be measured, and why."""
    return Check(name, output, None, None, COMPONENT_BOUND, note, inputs=inputs)


def _repaint(pipeline: Pipeline, path: Path | None) -> Check:
    components = pipeline.package.manifest.components.values()
    strictest = max(PICTURE_DECIBELS.values())
    lower = [
        PICTURE_DECIBELS.get(c.precision, strictest) for c in components if c.precision not in EXACT
    ]

    def failed(note: str) -> Check:
        return Check("picture", "pixels", None, None, PICTURE_BOUND, note, "of 255")

    if path is None:
        return failed("no recorded picture")
    try:
        recorded = _read_arrays(path)
        picture = recorded["picture"]
        given: dict[str, Any] = {
            argument: recorded[name]
            for argument, name in (("image", "image"), ("mask_image", "mask"))
            if name in recorded
        }
        result = pipeline(
            str(recorded["prompt"]),
            str(recorded["negative_prompt"]),
            height=picture.shape[1],
            width=picture.shape[2],
            num_inference_steps=int(recorded["num_inference_steps"]),
            guidance_scale=float(recorded["guidance_scale"]),
            scheduler=str(recorded["scheduler"]),
            latents=recorded.get("latents"),
            seed=None if "latents" in recorded else int(recorded["seed"]),
            strength=float(recorded["strength"]) if "strength" in recorded else None,
            **given,
        )
    except (EngineError, PackageError, ValueError, TypeError, LookupError) as error:
        return failed(str(error))
    pixels = np.asarray(result.images[0])
    if pixels.shape != picture.shape[1:]:
        return failed(f"{pixels.shape} instead of {picture.shape[1:]}")
    difference = np.abs(pixels.astype(float) - picture[0].astype(float))
    _, cosine = compare(picture[0], pixels)
    if lower:
        noise = float((difference**2).mean())
        decibels = min(10 * math.log10(255**2 / noise), 100.0) if noise else 100.0
        return Check("picture", "pixels", decibels, cosine, min(lower), "", "PSNR")
    worst = float(difference.max())
    return Check("picture", "pixels", worst, cosine, PICTURE_BOUND, "", "of 255")


def _named(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            return dict(data)
    except Exception as error:  # a damaged archive raises nearly anything
        raise ValueError(f"reference/{path.name} is damaged: {error}") from error


def table(checks: Sequence[Check]) -> str:
    """The report as aligned text."""
    rows: list[tuple[str, ...]] = [
        ("component", "inputs", "output", "max abs", "cosine", "bound", "share", "verdict")
    ]
    for check in checks:
        measured = check.error is not None and check.metric != "files"
        rows.append(
            (
                check.name,
                check.inputs,
                check.output,
                check.shown(check.error) if measured else "-",
                f"{check.cosine:.7f}" if check.cosine is not None else "-",
                check.shown(check.bound) if measured else "-",
                f"{check.share:.1%}" if measured else "-",
                check.verdict,
            )
        )
    if not any(check.inputs for check in checks):
        rows = [(name, *rest) for name, _, *rest in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


__all__ = ["Check", "compare", "compared", "failed_check", "table", "verify", "verify_package"]
