"""Checkpoints in one file: families, settings and shapes that the header describes.

An input is the header's JSON; the tensors' data is added, as zeros. A module of diffusers that was
made for one input serves for others of the same configuration. The family of every file is found
out; one in four is compared with it weight by weight.
"""

from __future__ import annotations

import functools
import json
import random
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from sdexport.checkpoints import modules, single_file
from sdexport.checkpoints.file_family import family_of
from sdexport.checkpoints.file_metadata import check_metadata
from sdexport.checkpoints.single_file import SingleFile
from sdexport.checkpoints.weight_file import WeightFile
from sdexport.engines.errors import CheckpointError, InvalidArgumentError
from tests.fuzz import mutators
from tests.fuzz.harness import Target
from tests.helpers.original_layout import SMALL, original_layout, random_modules

FILE = "model.safetensors"
_WHOLE = 4
_MODULES = 100
"""That are kept."""
_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8}


@functools.cache
def header(number: int) -> dict[str, Any]:
    """The shapes of a small checkpoint of a family."""
    weights = original_layout(SMALL[number], random_modules(SMALL[number]))
    return {name: ["F32", list(value.shape)] for name, value in weights.items()}


def prepare(folder: Path) -> None:
    for number in range(len(SMALL)):
        header(number)


def write(folder: Path, data: bytes) -> None:
    """The input is {"family": number, "changes": {name: [type, shape] or null}, "metadata": {}}."""
    value = mutators.parsed(data)
    entries: dict[str, Any] = {}
    if isinstance(value, dict):
        number = value.get("family")
        entries = dict(header(number % len(SMALL))) if type(number) is int else {}
        changes = value.get("changes")
        entries |= changes if isinstance(changes, dict) else {}
        metadata = value.get("metadata")
    else:
        metadata = None
    start, size = _start(entries, metadata)
    with (folder / FILE).open("wb") as file:
        file.write(start)
        file.truncate(len(start) + size)  # zeros that take no time to write


def _start(entries: dict[str, Any], metadata: Any) -> tuple[bytes, int]:
    """The file up to its data, with every tensor of a plain type and shape; bytes of data."""
    written: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, entry in entries.items():
        if not (isinstance(entry, list) and len(entry) == 2 and entry[0] in map(str, _SIZES)):
            continue
        kind, shape = entry
        if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 5000 for n in shape):
            continue
        size = _SIZES[kind] * functools.reduce(lambda a, b: a * b, shape, 1)
        if size > 2**22:
            continue
        written[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(written).encode()
    return len(text).to_bytes(8, "little") + text, end


def run(folder: Path, data: bytes) -> None:
    if zlib.crc32(data) % _WHOLE:
        file = WeightFile.open(folder / FILE)
        check_metadata(file, family_of(file, SMALL, None))
        return
    with mock.patch.object(single_file, "empty", empty_once):
        SingleFile.open(folder / FILE, families=SMALL)


_empty: dict[tuple[str, str], Any] = {}


def empty_once(class_name: str, config: Mapping[str, Any]) -> Any:
    """A module without weights, which nothing changes; making one takes longer than all else."""
    key = class_name, json.dumps(config, sort_keys=True, default=str)
    if key not in _empty:
        if len(_empty) >= _MODULES:
            _empty.clear()
        _empty[key] = modules.empty(class_name, config)
    return _empty[key]


def mutate(data: bytes, rng: random.Random) -> bytes:
    value = mutators.parsed(data)
    if not isinstance(value, dict) or rng.random() < 0.5:
        return _JSON(data, rng)
    number = value.get("family")
    known = header(number % len(SMALL)) if type(number) is int else header(0)
    changes = value.get("changes")
    changes = dict(changes) if isinstance(changes, dict) else {}
    for _ in range(1 << rng.randrange(4)):
        name = rng.choice(list(known))
        kind, shape = known[name]
        changes[name] = rng.choice(
            (None, ["F16", shape], [kind, shape[::-1]], [kind, shape[1:]], ["F8_E4M3", shape])
        )
        if rng.random() < 0.3:
            changes[rng.choice(WORDS) + name] = [kind, shape]
    return mutators.dumped({**value, "changes": changes}, rng) or data


WORDS = (
    *(
        "model.diffusion_model.",
        "first_stage_model.",
        "cond_stage_model.",
        "conditioner.",
        "model_ema.",
    ),
    *(
        "v_pred",
        "ztsnr",
        "edm_mean",
        "edm_std",
        "edm_vpred.sigma_max",
        "scaled_fp8",
        "control_model.",
    ),
    *(
        "lora_unet_",
        "time_embed.cond_proj.weight",
        "input_blocks.0.0.weight",
        "F32",
        "label_emb.0.0.",
    ),
    *(
        "modelspec.architecture",
        "modelspec.prediction_type",
        "modelspec.encoder_layer",
        "ss_v2",
        "v",
    ),
)
_JSON = mutators.json_text(WORDS)
TARGET = Target(
    "single_file",
    run,
    names=(FILE,),
    prepare=prepare,
    write=write,
    mutate=mutate,
    errors=(CheckpointError, InvalidArgumentError),
    longest=4096,
    random_inputs=10,
)
