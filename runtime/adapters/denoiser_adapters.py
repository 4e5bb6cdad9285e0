"""The adapters of a call that change the denoiser alone, by kind."""

from __future__ import annotations

from sdexport.engines import PLAN_BACKENDS
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.adapters.adapter_store import AdapterStore
from sdexport.runtime.adapters.call_adapters import DenoiserAdapter
from sdexport.runtime.adapters.controlled_images import ControlledImages
from sdexport.runtime.adapters.followed_images import FollowedImages
from sdexport.runtime.packages.package import Package


def denoiser_adapters(
    store: AdapterStore,
    package: Package,
    following: FollowedImages,
    call: ControlledImages,
    backend: str,
) -> list[DenoiserAdapter]:
    """Open the adapters of a call.

    Args:
      package: of the model.
      backend: that was asked for, for the denoiser.
    Raises: InvalidArgumentError: a backend that takes none; see AppliedControlNets,
      AppliedT2IAdapters and AppliedIPAdapters.
    """
    found: list[DenoiserAdapter] = []
    try:
        if following.controlnets:
            from sdexport.runtime.adapters.applied_controlnets import (
                AppliedControlNets,
                check_backend,
            )

            check_backend(backend)
            nets, controls = following.controlnets, following.controls
            found.append(AppliedControlNets(store, package, nets, controls, call))
        if following.t2i_adapters:
            from sdexport.runtime.adapters.applied_t2i import AppliedT2IAdapters

            _check_backend("t2i_adapters", backend)
            adapters, images = following.t2i_adapters, following.t2i_images
            found.append(AppliedT2IAdapters(store, package, adapters, images, call))
        if following.ip_adapters:
            from sdexport.runtime.adapters.applied_ip import AppliedIPAdapters

            _check_backend("ip_adapters", backend)
            found.append(AppliedIPAdapters(store, package, following.ip_adapters, call))
    except BaseException:
        for each in found:
            each.close()
        raise
    finally:
        store.close_others()  # before the sessions of these are opened
    return found


def _check_backend(name: str, requested: str) -> None:
    if requested in PLAN_BACKENDS:
        raise InvalidArgumentError(
            f"{name}: {requested} takes no adapters at run time, as its engines were built without "
            "their inputs; use --backend onnxruntime or openvino"
        )
