"""Whether a ControlNet-XS holds the UNet of a model.

Both packages have PyTorch's outputs of that UNet for the same inputs, whatever their precision. The
manifests list these files with their hashes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sdexport.engines.array_files import read_arrays
from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.guarded_files import REFERENCE_LIMIT, parsing
from sdexport.runtime.models.components import UNET
from sdexport.runtime.packages.listed_files import REFERENCE
from sdexport.runtime.packages.package import Package

LARGEST_DIFFERENCE = 3e-3
"""Of the outputs of one UNet, in relative L2: it may have been read in float16 for one of the
packages, and by another version of PyTorch. Those of two models differ by several percent."""
_INPUT, _OUTPUT = "input.", "output.out_sample"


def check_base(package: Package, adapter: Package, what: str) -> None:
    """Check that a ControlNet-XS was fused with the UNet of a model.

    Args:
      what: begins the message.
    Raises: InvalidArgumentError: with that of another model. PackageError: one of the packages does
      not hold the outputs of its UNet, or they are damaged.
    """
    ours = _recorded(package, package.family.denoiser)
    theirs = _recorded(adapter, UNET.name)
    with parsing(PackageError, f"{adapter.folder}: {REFERENCE}/{UNET.name}.npz"):
        same_inputs = _same_inputs(ours, theirs)
        difference = _difference(ours[_OUTPUT], theirs[_OUTPUT]) if same_inputs else np.inf
    if not difference <= LARGEST_DIFFERENCE:
        how = f"by {difference:.2g} of their size" if np.isfinite(difference) else "in their inputs"
        raise InvalidArgumentError(
            f"{what}: it holds the UNet of another model ({_source(adapter, 'base.')}) than this "
            f"package ({_source(package)}); what the UNets give differs {how}. Export it with "
            "--base, the checkpoint of this package"
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
        return read_arrays(
            path, error=PackageError, limit=REFERENCE_LIMIT, folder=package.folder, called=called
        )


def _same_inputs(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
    names = {name for name in (*ours, *theirs) if name.startswith(_INPUT)}
    return all(
        name in ours and name in theirs and np.array_equal(ours[name], theirs[name])
        for name in names
    )


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Of two arrays, in relation to the first one; infinity if their shapes differ."""
    size = float(np.linalg.norm(one))
    if one.shape != other.shape or not size:
        return np.inf
    return float(np.linalg.norm(other - one)) / size


def _source(package: Package, prefix: str = "") -> str:
    """Where a model comes from, in a few characters."""
    source = package.manifest.source
    if not prefix or any(key.startswith(prefix) for key in source):
        source = {k.removeprefix(prefix): v for k, v in source.items() if k.startswith(prefix)}
    name = source.get("id") or f"{source.get('type', 'source')} {source.get('sha256', '')[:12]}"
    return f"{name:.100}".strip()
