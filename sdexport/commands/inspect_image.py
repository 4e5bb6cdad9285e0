"""Printing the settings of an image, for `sdexport inspect`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from sdexport.commands.output import echo
from sdexport.commands.shared_options import print_json
from sdexport.engines.printable_text import escaped
from sdexport.runtime.images.infotext import label
from sdexport.runtime.images.parameters import Parameters
from sdexport.runtime.images.read_parameters import read_parameters
from sdexport.runtime.images.recorded_values import RecordedControlNet

_LONGEST = 400
"""Characters that are printed of a setting that is not understood."""


def inspect_image(path: Path, *, as_json: bool) -> None:
    """Print the settings of an image, those that are not the default.

    Raises: InvalidArgumentError: it is no image, or carries no settings.
    """
    parameters = read_parameters(path)
    if as_json:
        file = {"file": parameters.file, "not_understood": dict(parameters.not_understood)}
        print_json({"path": str(path)} | parameters.to_dict() | file)
        return
    echo(*settings_lines(parameters))


def settings_lines(parameters: Parameters) -> list[str]:
    """A line for each setting that is not the default, and what the settings do not hold."""
    rows = []
    for each in fields(parameters):
        value = getattr(parameters, each.name)
        if each.name in ("external", "not_understood") or value in (None, {}, ()):
            continue
        if value != each.default or each.name in ("num_inference_steps", "version"):
            rows.append((label(each.name), _shown(value)))
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:<{width}}{value}" for name, value in rows]
    for name, what in parameters.external.items():
        lines.append(f"not in the settings, and needed to reproduce the image: {name}, {what}")
    for name, value in parameters.not_understood.items():
        lines.append(f"not understood: {_shown(name)}: {_shown(value)[:_LONGEST]}")
    return lines


def _shown(value: Any) -> str:
    """A value on one line; control characters of a text are escaped."""
    if isinstance(value, tuple) and value and isinstance(value[0], RecordedControlNet):
        return "; ".join(_shown(str(each)) for each in value)
    if isinstance(value, tuple) and value and hasattr(value[0], "sha256"):
        return ", ".join(f"{each.name or 'unnamed'} (pixels {each.sha256[:10]})" for each in value)
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    if hasattr(value, "items"):
        return ", ".join(f"{_shown(key)} {_shown(entry)}" for key, entry in value.items()) or "none"
    return escaped(str(value))
