"""Whether a ControlNet-XS holds the UNet of a model.

Both packages have PyTorch's outputs of that UNet for the same inputs, whatever their precision. The
manifests list these files with their hashes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from sdexport.engines.array_files import read_arrays
from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.guarded_files import REFERENCE_LIMIT, parsing
from sdexport.runtime.models.components import UNET
from sdexport.runtime.packages.listed_files import REFERENCE
from sdexport.runtime.packages.package import Package

SAME = 2e-5
"""Difference of the outputs of one UNet, in relative L2: float32 arithmetic in another order, as by
another version of PyTorch or another processor."""
LARGEST_DIFFERENCE = 1e-3
"""The same, if one package was made from weights in float16: 2e-4 of the demo model, 5.6e-4 of a
small random UNet. A LoRA at a small scale may change the outputs by less than that, so a difference
between these two is named in a warning."""
_INPUT, _OUTPUT = "input.", "output.out_sample"
_MERGED_LORA = "lora."
"""What keys of a manifest's `source` begin with that name a LoRA merged into the model."""
logger = logging.getLogger(__name__)


def check_base(package: Package, adapter: Package, what: str) -> None:
    """Check that a ControlNet-XS was fused with the UNet of a model; warn if that is not certain.

    Args:
      what: begins the message.
    Raises: InvalidArgumentError: with that of another model, or of this one without the LoRAs that
      are merged into it. PackageError: one of the packages does not hold the outputs of its UNet,
      or they are damaged.
    """
    ours = _recorded(package, package.family.denoiser)
    theirs = _recorded(adapter, UNET.name)
    difference = np.inf
    if _same_inputs(ours, theirs):
        difference = _difference(ours[_OUTPUT], theirs[_OUTPUT])
    if difference <= SAME:
        return
    sources = f"({_source(adapter, 'base.')}) than this package ({_source(package)})"
    how = f"by {difference:.2g} of their size" if np.isfinite(difference) else "in their inputs"
    origin = package.manifest.source
    has_loras = any(key.startswith(_MERGED_LORA) for key in origin)
    if difference <= LARGEST_DIFFERENCE and not has_loras:
        logger.warning(
            "%s may not fit %s: it holds a UNet of other files %s; what the UNets give differs %s. "
            "Weights in float16 explain that, and so does a small change of the model, which would "
            "have no effect; to be sure, export both from the same files",
            *(adapter.folder, package.folder, sources, how),
        )
        return
    remedy = "Export it with --base, the checkpoint of this package"
    if origin.get("weights") == "ema":
        remedy += ", and --base-ema"
    if has_loras:
        remedy = "LoRAs are merged into this package: export the model without --lora"
    raise InvalidArgumentError(
        f"{what}: it holds the UNet of another model {sources}; what the UNets give differs {how}. "
        f"{remedy}"
    )


def _recorded(package: Package, component: str) -> dict[str, np.ndarray]:
    path = package.folder / REFERENCE / f"{component}.npz"
    called = f"{REFERENCE}/{path.name}"
    if called not in {record.path for record in package.manifest.every_file}:
        raise PackageError(
            f"{package.folder} has no {called}, by which a ControlNet-XS and its model are "
            "recognised; export it again"
        )
    with package.files.of([path]).unchanged():
        arrays = read_arrays(
            path, error=PackageError, limit=REFERENCE_LIMIT, folder=package.folder, called=called
        )
    with parsing(PackageError, f"{package.folder}: {called}"):
        _check_output(arrays)
    return arrays


def _check_output(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises: KeyError, ValueError: there is no output, or a UNet does not give such a one."""
    sample, output = arrays[f"{_INPUT}sample"], arrays[_OUTPUT]
    if output.dtype != np.float32 or output.shape != sample.shape:
        raise ValueError(f"{_OUTPUT} is {output.dtype} {output.shape}")
    if not np.isfinite(output).all():
        raise ValueError(f"{_OUTPUT} holds NaN or infinity")


def _same_inputs(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
    names = {name for name in (*ours, *theirs) if name.startswith(_INPUT)}
    return all(
        name in ours and name in theirs and np.array_equal(ours[name], theirs[name])
        for name in names
    )


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Of two arrays of one shape, in relation to the larger one."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    size = max(float(np.linalg.norm(each)) for each in (one, other))
    return float(np.linalg.norm(other - one)) / size if size else 0.0


def _source(package: Package, prefix: str = "") -> str:
    """Where a model comes from, in a few characters."""
    source = package.manifest.source
    if not prefix or any(key.startswith(prefix) for key in source):
        source = {k.removeprefix(prefix): v for k, v in source.items() if k.startswith(prefix)}
    name = source.get("id") or f"{source.get('type', 'source')} {source.get('sha256', '')[:12]}"
    return f"{name:.100}".strip()
