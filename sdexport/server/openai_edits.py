"""OpenAI's images.edit: the image, and a mask whose transparent parts are edited."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.images.resizing import resize


def edit_arguments(
    images: Sequence[bytes],
    mask: bytes | None,
    arguments: Mapping[str, Any],
    size: tuple[int, int] | None,
    read: Callable[[bytes, str], Image.Image],
) -> dict[str, Any]:
    """The arguments `image` and `mask_image` of a call, and `paste_back` with a mask.

    An image without a mask that has transparent pixels is its own mask. What is not edited keeps
    its pixels, unless the request has its own `paste_back`.

    Args:
      images, mask: the bytes of the files.
      arguments: of the call, from the request.
      size: the requested one; None for that of the image.
      read: decodes the bytes of a file, which the name says.
    Raises: InvalidArgumentError: not one image, a file that is none, or a mask that does not fit.
    """
    if len(images) != 1:
        raise InvalidArgumentError(f"image: expected one image to edit, got {len(images)}")
    image = read(images[0], "image")
    if mask is not None:
        cover = read(mask, "mask")
        if not cover.has_transparency_data:
            raise InvalidArgumentError(
                "mask: it has no transparency; what is to be edited must be transparent"
            )
        if cover.size != image.size:
            raise InvalidArgumentError(
                f"mask: it must have the size of the image, {image.width}x{image.height}, got "
                f"{cover.width}x{cover.height}"
            )
        edited = transparent_parts(cover)
    elif image.has_transparency_data and transparent_parts(image).getbbox() is not None:
        edited = transparent_parts(image)
    else:
        return {"image": _rgb(image)}
    found: dict[str, Any] = {"image": _rgb(image), "mask_image": edited}
    if "padding_mask_crop" in arguments:
        return found
    found.setdefault("paste_back", arguments.get("paste_back", True))
    if size is not None and found["paste_back"] and size != image.size:  # into that size
        mode = arguments.get("resize_mode", "stretch")
        found["image"] = resize(found["image"], *size, mode)
        found["mask_image"] = resize(edited, *size, mode).convert("L")
    return found


def transparent_parts(image: Image.Image) -> Image.Image:
    """A mask in mode L: 255 where the image is fully transparent, else 0."""
    alpha = image.convert("RGBA").getchannel("A")
    return alpha.point([255] + [0] * 255)


def _rgb(image: Image.Image) -> Image.Image:
    """The stored colours, without alpha."""
    return image.convert("RGBA").convert("RGB") if image.has_transparency_data else image
