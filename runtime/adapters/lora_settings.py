"""PEFT's settings of a LoRA, from the header of its file or adapter_config.json next to it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.engines.errors import CheckpointError
from sdexport.engines.guarded_files import JSON_LIMIT, read_guarded
from sdexport.engines.json_text import parse_json
from sdexport.engines.messages import shown
from sdexport.runtime.adapters.damaged_files import parsing
from sdexport.runtime.adapters.lora_kinds import Kind

PEFT_HEADER = "lora_adapter_metadata"
_METHODS = ("LORA", "LOHA", "LOKR")
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica", None)
"""Those of PEFT that leave the checkpoint's own weights as they are."""


@dataclass(frozen=True)
class PeftSettings:
    """PEFT's settings of each component, by their keys; empty if the file has none."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, metadata: Mapping[str, str]) -> PeftSettings:
        """From the file's header, or from adapter_config.json next to an adapter_model file.

        Raises: CheckpointError: the settings are damaged, or of a method that is not supported.
        """
        text = metadata.get(PEFT_HEADER)
        sidecar = path.with_name("adapter_config.json")
        if text is None and path.stem == "adapter_model" and sidecar.is_file():
            content = read_guarded(sidecar, error=CheckpointError, limit=JSON_LIMIT)
            text = content.decode("utf-8", "replace")
        with parsing(f"{path}: its LoRA settings are damaged"):
            values = parse_json(text) if text else {}
            if not isinstance(values, dict):
                raise CheckpointError(f"{path}: its LoRA settings are damaged: no JSON object")
            settings = cls(path, values)
            for part in ("", "unet", "text_encoder", "text_encoder_2"):
                settings._check(settings.of(part))
            return settings

    def of(self, part: str) -> dict[str, Any]:
        """The settings of a component, under PEFT's own keys."""
        return {key.removeprefix(f"{part}."): value for key, value in self.values.items()}

    def ratio(self, part: str, layer: str, rank: int | None) -> float | None:
        """alpha / rank of a layer; None if the settings do not say.

        Args:
          rank: as the layer's factors have it; default that of the settings.
        """
        with parsing(f"{self.path}: its LoRA settings are damaged"):
            own = self.of(part)
            alpha = self._by_pattern(own.get("alpha_pattern"), layer)
            if alpha is None:
                alpha = own.get("lora_alpha", own.get("alpha"))
            if rank is None:
                rank = self._by_pattern(own.get("rank_pattern"), layer) or own.get("r")
            if alpha is None or rank is None:
                return None
            ratio = float(alpha) / (math.sqrt(rank) if own.get("use_rslora") else float(rank))
            if not math.isfinite(ratio):
                raise CheckpointError(f"{self.path}: its LoRA settings give {layer} alpha {alpha}")
            return ratio

    def _check(self, own: Mapping[str, Any]) -> None:
        method = own.get("peft_type", "LORA")
        if method not in _METHODS:
            raise CheckpointError(f"{self.path}: PEFT's method {shown(method)} is not supported")
        start = own.get("init_lora_weights", True)
        if start not in _INITIALISATIONS:
            raise CheckpointError(
                f"{self.path}: init_lora_weights {shown(start)} changes the checkpoint's weights "
                "as well, which is not supported; convert it to a plain LoRA with PEFT"
            )
        if own.get("fan_in_fan_out"):
            raise CheckpointError(f"{self.path}: fan_in_fan_out is not supported")

    def _by_pattern(self, patterns: Any, layer: str) -> Any:
        """The value of the first pattern that fits a layer, which may be the end of its name."""
        name = layer.removeprefix("text_model.")
        for pattern, value in (patterns or {}).items():
            literal = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
            if not re.fullmatch(r"[\w.-]*", literal):
                raise CheckpointError(
                    f"{self.path}: its LoRA settings have the pattern {shown(pattern)}; only names "
                    "are supported"
                )
            end = literal.removeprefix("text_model.")
            if name == end or (name.endswith(f".{end}") and not pattern.startswith("^")):
                return value
        return None


def ratio_of(
    kind: Kind | None,
    tensors: Mapping[str, Any],
    of_settings: Callable[[int | None], float | None],
) -> float:
    """What the product of a layer's factors is multiplied by: alpha / rank.

    Args:
      tensors: by role. of_settings: PeftSettings.ratio of the layer.
    """
    rank = None if kind is None else kind.rank(tensors)
    if "scale" in tensors:
        return float(tensors["scale"])
    if "alpha" in tensors:
        return float(tensors["alpha"]) / rank if rank else 1.0
    ratio = of_settings(rank)
    return 1.0 if ratio is None else ratio
