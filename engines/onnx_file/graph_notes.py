"""What an ONNX file says of itself: its opset and the metadata of its exporter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdexport.engines.onnx_file.wire_format import Entry, Model, Opset, open_model

_MAX_ENTRY, _MAX_ENTRIES = 4096, 256
"""Bytes of one metadata entry, and how many there may be; sdexport writes 8 short ones."""


@dataclass(frozen=True)
class GraphNotes:
    """opset: version of ONNX's own operators; None if the file does not say.

    metadata: the model's metadata_props, without entries of more than 4096 bytes.
    """

    opset: int | None
    metadata: Mapping[str, str]


def graph_notes(path: Path) -> GraphNotes:
    """Read opset and metadata, without the graph.

    Raises: ValueError: not a well-formed ONNX model, or one with more than 256 entries.
      FileNotFoundError: no such file.
    """
    opset, metadata = None, {}
    with open_model(path) as model:
        for number, value in model.fields():
            if number == Model.OPSET_IMPORT and value.text(Opset.DOMAIN) in ("", "ai.onnx"):
                opset = value.integer(Opset.VERSION)
            elif number == Model.METADATA_PROPS and value.end - value.start <= _MAX_ENTRY:
                metadata[value.text(Entry.KEY)] = value.text(Entry.VALUE)
                if len(metadata) > _MAX_ENTRIES:
                    raise ValueError(f"{path.name} has more than {_MAX_ENTRIES} metadata entries")
    return GraphNotes(opset, metadata)
