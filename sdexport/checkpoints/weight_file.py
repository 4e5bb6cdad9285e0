"""One file of weights: its kind and its tensors, without running code that it may hold.

A .safetensors file is mapped into memory, so its tensors cost nothing until they are read. A pickle
is a program; it is opened only on request, and then by PyTorch's loader for weights alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sdexport.checkpoints.pickle_file import read_pickle, tensors_in
from sdexport.checkpoints.quantised_weights import dequantised
from sdexport.checkpoints.weight_kinds import kind_of_other_file, kind_of_weights
from sdexport.checkpoints.weight_origins import NamedWeight
from sdexport.engines.errors import CheckpointError
from sdexport.engines.files import sha256_of
from sdexport.engines.guarded_files import open_guarded
from sdexport.engines.messages import one_line
from sdexport.runtime.adapters.damaged_files import parsing
from sdexport.runtime.adapters.safetensors_header import begins_as_safetensors, check_header

PICKLE_HINT = (
    "a pickle can run programs; give --allow-pickle to read its weights alone, "
    "or convert it to .safetensors"
)


@dataclass(frozen=True)
class WeightFile:
    """The content of a file of weights.

    tensors: by name; of a pickle those of its "state_dict", if it has one.
    metadata: texts that a .safetensors file carries.
    content: everything a pickle holds; of a .safetensors file the tensors.
    others: entries of a pickle that hold tensors but are not among `tensors`.
    """

    path: Path
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    content: Any = field(repr=False)
    others: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str | Path, *, allow_pickle: bool = False) -> WeightFile:
        """Open a .safetensors file, or with `allow_pickle` a .ckpt, .pt or .bin.

        Raises: FileNotFoundError: no such file. CheckpointError: a file of another kind, truncated
          or damaged; a pickle without `allow_pickle`, or one that holds more than weights.
        """
        path = Path(path)
        try:
            with open_guarded(path, error=CheckpointError) as stream:
                head = stream.read(512)
        except FileNotFoundError:
            raise FileNotFoundError(f"no file of weights at {path}") from None
        if begins_as_safetensors(head):  # first: its length may begin as a pickle does
            return cls._open_safetensors(path)
        if not head:
            raise CheckpointError(f"{path} is empty (0 bytes); download it again")
        if other := kind_of_other_file(head):
            raise CheckpointError(f"{path} is not a file of weights, but {other}")
        if not head.startswith((b"PK\x03\x04", b"\x80")):
            return cls._open_safetensors(path)  # which says what is wrong
        if not allow_pickle:
            raise CheckpointError(f"{path} is a pickle, not a .safetensors file: {PICKLE_HINT}")
        return cls._open_pickle(path)

    @classmethod
    def _open_safetensors(cls, path: Path) -> WeightFile:
        with open_guarded(path, error=CheckpointError) as stream:
            check_header(path, stream)
        with parsing(f"{path} is damaged"), safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return cls(path, tensors, opened.metadata() or {}, tensors)

    @classmethod
    def _open_pickle(cls, path: Path) -> WeightFile:
        content = read_pickle(path)
        state = _state_of(content)
        tensors = {
            str(name): value.detach()
            for name, value in (state.items() if isinstance(state, dict) else ())
            if isinstance(value, torch.Tensor)
        }
        return cls(path, tensors, {}, content, _others(content, state))

    @functools.cached_property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """The tensors; those of float8 layers with a scale are converted to float32 when read.

        Raises: CheckpointError: a kind of quantisation that is not supported.
        """
        return dequantised(self.path, self.tensors, self.metadata)

    @functools.cached_property
    def named_weights(self) -> Mapping[str, torch.Tensor]:
        """Shapes and types of `weights`, as NamedWeight, without reading any."""
        return {name: NamedWeight.like(name, self.tensors[name]) for name in self.weights}

    @property
    def kind(self) -> str:
        """What the file holds by the names of its tensors, such as "a LoRA"."""
        names = self.content if isinstance(self.content, dict) else self.tensors
        return kind_of_weights(names, self.tensors)

    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return sha256_of(self.path)


def merged(files: Sequence[WeightFile]) -> dict[str, torch.Tensor]:
    """The weights of several files of one component.

    Raises: CheckpointError: two of them hold different weights of one name.
    """
    found: dict[str, torch.Tensor] = {}
    for file in files:
        for name, value in file.weights.items():
            if name in found and not torch.equal(found[name], value):
                raise CheckpointError(
                    f"{file.path}: another shard holds another {one_line(name, 80)}"
                )
            found[name] = value
    return found


def _state_of(content: Any) -> Any:
    """The named tensors of a pickle: its "state_dict", its only entry, or itself."""
    if not isinstance(content, dict):
        return {}
    inner = list(content.values())
    only = inner[0] if len(inner) == 1 and isinstance(inner[0], dict) else content
    return content.get("state_dict", only)


def _others(content: Any, state: Any) -> tuple[str, ...]:
    """Entries of a pickle whose tensors are not in its state, or further inside."""
    outside = content if isinstance(content, dict) and content is not state else {}
    nested = state if isinstance(state, dict) else {}
    found = {str(k) for k, v in outside.items() if v is not state and _holds_tensors(v)}
    inside = (k for k, v in nested.items() if not torch.is_tensor(v) and _holds_tensors(v))
    return tuple(sorted(found.union(map(str, inside))))


def _holds_tensors(value: Any) -> bool:
    return any(True for _ in tensors_in(value))
