"""The adapters of a call that change the denoiser alone, by kind."""

from __future__ import annotations

from sdexport.engines import PLAN_BACKENDS
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.adapters.adapter_store import AdapterStore
from sdexport.runtime.adapters.call_adapters import FIELDS, DenoiserAdapter
from sdexport.runtime.adapters.controlled_images import ControlledImages
from sdexport.runtime.adapters.followed_images import FollowedImages
from sdexport.runtime.models.components import EXPORT_OPTIONS, AdapterKind
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
            from sdexport.runtime.adapters.applied_controlnets import AppliedControlNets

            _check_backend(AdapterKind.CONTROLNET, backend)
            nets, controls = following.controlnets, following.controls
            found.append(AppliedControlNets(store, package, nets, controls, call))
        if following.t2i_adapters:
            from sdexport.runtime.adapters.applied_t2i import AppliedT2IAdapters

            _check_backend(AdapterKind.T2I_ADAPTER, backend)
            adapters, images = following.t2i_adapters, following.t2i_images
            found.append(AppliedT2IAdapters(store, package, adapters, images, call))
        if following.ip_adapters:
            from sdexport.runtime.adapters.applied_ip import AppliedIPAdapters

            _check_backend(AdapterKind.IP_ADAPTER, backend)
            found.append(AppliedIPAdapters(store, package, following.ip_adapters, call))
    except BaseException:
        for each in found:
            each.close()
        raise
    finally:
        store.close_others()  # before the sessions of these are opened
    return found


def _check_backend(kind: AdapterKind, requested: str) -> None:
    """Raises: InvalidArgumentError: a backend whose engines take no adapters of a kind."""
    if requested in PLAN_BACKENDS:
        raise InvalidArgumentError(
            f"{FIELDS[kind]}: {requested} does not take {EXPORT_OPTIONS[kind][0]} at run time, as "
            "its engines were built without their inputs; use --backend onnxruntime or openvino"
        )
