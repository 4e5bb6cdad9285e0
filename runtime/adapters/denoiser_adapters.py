"""The adapters of a call that change the denoiser alone, by kind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from sdexport.engines import PLAN_BACKENDS
from sdexport.engines.errors import InvalidArgumentError
from sdexport.runtime.adapters.adapter_store import AdapterStore, OpenedAdapters
from sdexport.runtime.adapters.call_adapters import FIELDS, DenoiserAdapter
from sdexport.runtime.adapters.controlled_images import ControlledImages
from sdexport.runtime.adapters.followed_images import FollowedImages
from sdexport.runtime.adapters.lora_inputs import TAKE_LORAS
from sdexport.runtime.component_sessions import ComponentSessions
from sdexport.runtime.models.components import EXPORT_OPTIONS, AdapterKind, adapter_graph
from sdexport.runtime.models.controlnet import is_xs
from sdexport.runtime.packages.package import Package


def denoiser_adapters(
    store: AdapterStore,
    package: Package,
    following: FollowedImages,
    call: ControlledImages,
    components: ComponentSessions,
    *,
    with_loras: bool,
) -> list[DenoiserAdapter]:
    """Open the adapters of a call.

    Args:
      package: of the model. components: its sessions.
      with_loras: whether LoRAs change the denoiser too.
    Raises: InvalidArgumentError: a backend that takes none, or has no engine that does; see
      AppliedControlNets, AppliedT2IAdapters and AppliedIPAdapters.
    """
    kind, folders = AdapterKind.CONTROLNET, [net.package for net in following.controlnets]
    try:
        # While these are held, a package that is opened again is not read again.
        with closing(OpenedAdapters(store, folders, kind)) as nets:
            if any(is_xs(each.family) for each in nets.packages):
                return [
                    _controlnet_xs(store, package, following, call, nets, components, with_loras)
                ]
            _check_backend(following.kinds, package, components, with_loras=with_loras)
            return _taken_by_graph(store, package, following, call)
    finally:
        store.close_others()  # before the sessions of these are opened


def _taken_by_graph(
    store: AdapterStore, package: Package, following: FollowedImages, call: ControlledImages
) -> list[DenoiserAdapter]:
    """The adapters for which the denoiser's graph has inputs."""
    found: list[DenoiserAdapter] = []
    try:
        if following.controlnets:
            from sdexport.runtime.adapters.applied_controlnets import AppliedControlNets

            controlnets, controls = following.controlnets, following.controls
            found.append(AppliedControlNets(store, package, controlnets, controls, call))
        if following.t2i_adapters:
            from sdexport.runtime.adapters.applied_t2i import AppliedT2IAdapters

            adapters, images = following.t2i_adapters, following.t2i_images
            found.append(AppliedT2IAdapters(store, package, adapters, images, call))
        if following.ip_adapters:
            from sdexport.runtime.adapters.applied_ip import AppliedIPAdapters

            found.append(AppliedIPAdapters(store, package, following.ip_adapters, call))
    except BaseException:
        for each in found:
            each.close()
        raise
    return found


def _controlnet_xs(
    store: AdapterStore,
    package: Package,
    following: FollowedImages,
    call: ControlledImages,
    nets: OpenedAdapters,
    components: ComponentSessions,
    with_loras: bool,
) -> DenoiserAdapter:
    """The ControlNet-XS among the ControlNets of a call.

    Raises: InvalidArgumentError: there are other adapters. See AppliedControlNetXS.
    """
    from sdexport.runtime.adapters.applied_controlnet_xs import AppliedControlNetXS, check_alone

    folder = next(each.folder for each in nets.packages if is_xs(each.family))
    check_alone(folder, following, with_loras=with_loras)
    (net,), (images,) = following.controlnets, following.controls
    return AppliedControlNetXS(store, package, net, images, call, components)


def _check_backend(
    kinds: Sequence[AdapterKind],
    package: Package,
    components: ComponentSessions,
    *,
    with_loras: bool,
) -> None:
    """Raises: InvalidArgumentError: the denoiser's backend takes no adapters of these kinds, or it
    has no engine of the graph that does. PackageError: the package has no such graph.
    """
    denoiser = package.family.denoiser
    requested = components.requested(denoiser)
    if requested not in PLAN_BACKENDS:
        return
    names = " and ".join(EXPORT_OPTIONS[kind][0] for kind in kinds)
    if requested not in TAKE_LORAS:
        raise InvalidArgumentError(
            f"{FIELDS[kinds[0]]}: {requested} does not take {names} at run time, as its engines "
            "were built without their inputs; use --backend onnxruntime or openvino"
        )
    graph = adapter_graph(denoiser, {*kinds, *([AdapterKind.LORA] if with_loras else [])})
    package.model_path(graph)
    if missing := components.missing_engine(graph):
        raise InvalidArgumentError(f"{FIELDS[kinds[0]]}: {missing}")
