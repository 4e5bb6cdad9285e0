"""The features of T2I-Adapters for a call: computed once for an image, scaled and added."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from sdexport.engines import Session, TensorSpec
from sdexport.engines.errors import EngineError, InvalidArgumentError, PackageError
from sdexport.engines.guarded_files import parsing
from sdexport.runtime.adapters.t2i_inputs import residual_name, residual_specs
from sdexport.runtime.component_sessions import chunks, finite
from sdexport.runtime.models.t2i_adapter import CONTROL_IMAGE


def grey(images: np.ndarray) -> np.ndarray:
    """Images with one channel, as Pillow makes them grey.

    Args:
      images: (n, 3, height, width) float32 in 0..1.
    Returns: (n, 1, height, width).
    """
    levels = np.rint(images.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    found = [Image.fromarray(np.ascontiguousarray(each)).convert("L") for each in levels]
    return np.stack([np.asarray(each, np.float32) for each in found])[:, None] / np.float32(255)


def check_fits(name: str, adapter: Sequence[TensorSpec], unet: Sequence[TensorSpec]) -> None:
    """Check that a UNet adds an adapter's features where they have its size.

    Args:
      name: of the adapter's package, for messages.
      adapter: outputs of the adapter. unet: inputs of the UNet's graph.
    Raises: InvalidArgumentError: another family, or other widths. PackageError: its outputs are no
      features.
    """
    wanted = [spec.shape[1:] for spec in residual_specs(unet)]
    with parsing(PackageError, name):
        given = [spec.shape[1:] for spec in residual_specs(adapter)]
    if given != wanted[: len(given)]:
        raise InvalidArgumentError(
            f"t2i_adapters: {name} is for another model: its features have {_widths(given)}, and "
            f"the UNet takes {_widths(wanted)}"
        )


def _widths(shapes: Sequence[tuple[int | str, ...]]) -> str:
    found = (f"{channels} channels at {height}" for channels, height, _ in shapes)
    return ", ".join(found).replace("at height_", "at 1/").replace("at height", "at 1/1")


def features_of(
    session: Session, images: np.ndarray, max_batch: int | None
) -> dict[str, np.ndarray]:
    """What an adapter computes of its images, by the UNet's input, a row for each image.

    Raises: EngineError: it failed, or its output is not finite.
    """
    parts = [session.run({CONTROL_IMAGE: images[rows]}) for rows in chunks(len(images), max_batch)]
    return {
        spec.name: finite(
            np.concatenate([part[spec.name] for part in parts]), session.name, "the image"
        )
        for spec in residual_specs(session.outputs)
    }


def summed(
    features: Sequence[tuple[dict[str, np.ndarray], float]],
    specs: Sequence[TensorSpec],
    count: int,
    sizes: Sequence[tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """The residuals of a UNet: the scaled features of all adapters, and zeros where there are none.

    Args:
      features: of each adapter, with its scale.
      specs: of the residuals. sizes: (channels, height, width) of each.
      count: of rows.
    Returns: (count, channels, height, width) float32 each, by input.
    Raises: EngineError: features of another size.
    """
    found = {}
    for index, (spec, size) in enumerate(zip(specs, sizes, strict=True)):
        total = np.zeros((count, *size), np.float32)
        for each, scale in features:
            feature = each.get(residual_name(index))
            if feature is not None:
                if feature.shape[1:] != size:
                    raise EngineError(
                        f"t2i_adapter: {spec.name} has the shape {feature.shape[1:]}, "
                        f"expected {size}"
                    )
                total += feature * np.float32(scale)
        found[spec.name] = total
    return found
