"""The adapters of a call that follow images, with their control images opened."""

from __future__ import annotations

from collections.abc import Sequence

from sdexport.runtime.adapters.controlnet_argument import ControlNet
from sdexport.runtime.adapters.image_adapter_arguments import IPAdapter, T2IAdapter
from sdexport.runtime.images.control_images import ControlImages
from sdexport.runtime.models.components import AdapterKind
from sdexport.runtime.packages.manifest import Manifest


class FollowedImages:
    """ControlNets, T2I-Adapters and IP-Adapters of a call; false if there are none.

    Attributes:
      controls, t2i_images: the control images of each ControlNet and T2I-Adapter.
    Raises: see ControlImages.
    """

    def __init__(
        self,
        controlnets: Sequence[ControlNet],
        t2i_adapters: Sequence[T2IAdapter],
        ip_adapters: Sequence[IPAdapter],
    ) -> None:
        self.controlnets, self.t2i_adapters = controlnets, t2i_adapters
        self.ip_adapters = ip_adapters
        self.controls = [ControlImages(each.image) for each in controlnets]
        self.t2i_images = [ControlImages(each.image) for each in t2i_adapters]

    def __bool__(self) -> bool:
        return bool(self.controlnets or self.t2i_adapters or self.ip_adapters)

    @property
    def kinds(self) -> list[AdapterKind]:
        """The kinds of adapters that there are."""
        found = {
            AdapterKind.CONTROLNET: self.controlnets,
            AdapterKind.T2I_ADAPTER: self.t2i_adapters,
            AdapterKind.IP_ADAPTER: self.ip_adapters,
        }
        return [kind for kind, adapters in found.items() if adapters]

    def default_size(self, manifest: Manifest) -> tuple[int, int]:
        """(height, width) where neither is given and there is no input image: that of the first
        control image, or the model's own."""
        images = [*self.controls, *self.t2i_images]
        if not images:
            return manifest.default_size
        height, width = (
            max(side // manifest.downscale, 1) * manifest.downscale for side in images[0].size
        )
        return height, width
