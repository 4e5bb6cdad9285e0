"""Which texts in the header of a .safetensors file are known."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from sdexport.engines.messages import one_line

logger = logging.getLogger(__name__)

_NAMED = 5
"""Unknown keys that a warning names; it counts the others."""
_KNOWN = re.compile(
    r"format|comment|prompt|workflow|recipe|name|title|author|description|license|version|__\w+__"
    r"|date|tags|url|hash|software|resolution|thumbnail|training_info|trigger_?(words?|phrase)?"
    r"|usage_hint|civitai"
    r"|_quantization_metadata"  # read by quantised_weights.py
    r"|lora_adapter_metadata"  # read by lora_settings.py
    r"|modelspec\.\w+"  # read by file_prediction.py and lora_base.py, or about the file itself
    r"|(ss|sshs|ot|sd_merge|merge|civitai|spec)_\w+",  # about training and merging
    re.IGNORECASE,
)


def warn_about_unknown(path: Path, header: Iterable[str]) -> None:
    """Name the entries that are neither read anywhere nor known to be without effect."""
    unknown = sorted(key for key in header if not _KNOWN.fullmatch(key))
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        names = ", ".join(one_line(key, 40) for key in unknown[:_NAMED])
        logger.warning("%s: unknown metadata is ignored: %s%s", path, names, more)
