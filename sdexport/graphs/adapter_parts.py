"""The graphs of the packages of adapters, by family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace

from sdexport.graphs.controlnet_parts import controlnet_parts
from sdexport.graphs.controlnet_xs_parts import base_part, controlnet_xs_parts
from sdexport.graphs.ip_parts import ip_parts
from sdexport.graphs.t2i_parts import t2i_parts
from sdexport.graphs.wrappers import Part
from sdexport.runtime.models.controlnet import (
    CONTROLNET,
    CONTROLNET_FAMILY,
    CONTROLNET_XS,
    CONTROLNET_XS_FAMILY,
)
from sdexport.runtime.models.family import ModelFamily
from sdexport.runtime.models.ip_adapter import IMAGE_ENCODER, IMAGE_PROJECTION, IP_FAMILY
from sdexport.runtime.models.t2i_adapter import T2I_ADAPTER, T2I_FAMILY

Configs = Mapping[str, SimpleNamespace]
_PARTS: Mapping[str, Callable[[Configs], tuple[Part, ...]]] = {
    CONTROLNET_FAMILY.name: lambda configs: controlnet_parts(configs[CONTROLNET.source]),
    CONTROLNET_XS_FAMILY.name: lambda configs: controlnet_xs_parts(configs[CONTROLNET_XS.source]),
    T2I_FAMILY.name: lambda configs: t2i_parts(configs[T2I_ADAPTER.source]),
    IP_FAMILY.name: lambda configs: ip_parts(
        configs[IMAGE_ENCODER.source], configs[IMAGE_PROJECTION.source]
    ),
}


def adapter_parts(family: ModelFamily, configs: Configs) -> tuple[Part, ...]:
    """The graphs of an adapter, in the order in which they run.

    Args:
      configs: by component of its source.
    """
    return _PARTS[family.name](configs)


def base_of(part: Part, configs: Configs) -> tuple[Part, ...]:
    """The UNet inside of the graph of a ControlNet-XS; nothing for other graphs.

    Its outputs are recorded as well: a model is recognised by them.
    """
    return (base_part(configs[part.source]),) if part.component == CONTROLNET_XS else ()
