"""One file of weights: what kind it is, and its tensors, without running what it may hold.

A .safetensors file is mapped into memory, so its tensors cost nothing until they are read. A
pickle is a program; it is opened only if that is asked for, and then by PyTorch's reader for
weights alone.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sdexport.engines.files import sha256_of
from sdexport.engines.messages import one_line

PICKLE_HINT = (
    "a pickle can run programs; give --allow-pickle to read its weights alone, "
    "or convert it to .safetensors"
)
_LARGEST_HEADER = 100_000_000
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GGUF", "a GGUF file, as llama.cpp and stable-diffusion.cpp use"),
    (
        b"version https://git-lfs",
        "a git-LFS pointer, not the file it points to; run 'git lfs pull'",
    ),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF document"),
    (b"\x08\x00\x00\x00ONNX", "an ONNX graph"),
)
_LORA = (
    r"lora_(up|down|mid|A|B)\b|\.lora\.(up|down)|_lora\.(up|down)|lora_linear_layer|hada_w|lokr_w"
)
# The first pattern that matches a name names the file; a whole checkpoint holds a VAE's names too.
_KINDS = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (_LORA, "a LoRA"),
        (r"(^|\.)double_blocks\.\d+\.img_", "a Flux model"),
        (
            r"(^|\.)(joint_blocks\.\d+|transformer_blocks\.\d+\.ff_context)\.",
            "an SD 3 or Flux model",
        ),
        (r"^(control_model|controlnet_\w+)\.", "a ControlNet"),
        (r"motion_modules\.", "an AnimateDiff motion module"),
        (r"^(image_proj|ip_adapter)\.", "an IP-Adapter"),
        (r"^model\.diffusion_model\.input_blocks\.", "a Stable Diffusion checkpoint"),
        (r"^model\.diffusion_model\.", "a diffusion model of another family"),
        (
            r"^((base_)?model\.)*(layers\.\d+\.(self_attn|attention|mlp)|embed_tokens|h\.\d+)\."
            r"|^(transformer|gpt_neox)\.|^lm_head\.|^blk\.\d+\.",
            "a language model",
        ),
        (r"^(encoder|decoder)\.block\.\d+\.layer\.", "a T5 text encoder"),
        (r"^(string_to_param|emb_params|clip_[lg])$", "a textual-inversion embedding"),
        (r"^(unet\.)?(down_blocks|up_blocks)\.\d+\.", "a UNet alone in diffusers' layout"),
        (r"^(encoder|decoder)\.(conv_in|down|up|mid|layers)\b|^decoder\.\d+\.", "a VAE"),
        (r"^(vae|first_stage_model)\.", "a VAE"),
        (r"text_model\.|resblocks\.\d+\.", "a CLIP text encoder"),
    )
)


@dataclass(frozen=True)
class WeightFile:
    """The content of a file of weights.

    tensors: by name; of a pickle those of its "state_dict", if it has one.
    metadata: texts that a .safetensors file carries.
    content: everything a pickle holds; of a .safetensors file the tensors.
    """

    path: Path
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    content: Any = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, *, allow_pickle: bool = False) -> WeightFile:
        """Open a .safetensors file, or with `allow_pickle` a .ckpt, .pt or .bin.

        Raises: FileNotFoundError: no such file. ValueError: a file of another kind, cut short or
          damaged; a pickle that was not asked for, or that holds more than weights.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no file of weights at {path}")
        with path.open("rb") as stream:
            head = stream.read(512)
        if not _begins_as_safetensors(head):  # whose length may begin as a pickle does
            _refuse_other_kinds(path, head)
        if _begins_as_pickle(head):
            if not allow_pickle:
                raise ValueError(f"{path} is a pickle, not a .safetensors file: {PICKLE_HINT}")
            content = _read_pickle(path)
            state = content.get("state_dict", content) if isinstance(content, dict) else {}
            tensors = {
                str(name): value.detach()
                for name, value in (state.items() if isinstance(state, dict) else ())
                if isinstance(value, torch.Tensor)
            }
            return cls(path, tensors, {}, content)
        _check_header(path)
        try:
            with safe_open(path, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                metadata = opened.metadata() or {}
        except (SafetensorError, OSError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {one_line(error, 200)}") from error
        return cls(path, tensors, metadata, tensors)

    @property
    def kind(self) -> str:
        """What the names of the tensors tell, such as "a LoRA"."""
        names = self.content if isinstance(self.content, dict) else self.tensors
        return kind_of(names, self.tensors)

    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return sha256_of(self.path)


def kind_of(names: Iterable[Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """A short description of what holds weights of these names."""
    listed = [str(name) for name in names]
    for pattern, kind in _KINDS:
        if any(pattern.search(name) for name in (*tensors, *listed)):
            return kind
    if len(tensors) == 1 and all(value.ndim <= 2 for value in tensors.values()):
        return "a textual-inversion embedding"
    if not tensors:
        return "a file without weights"
    return f"a file of {len(tensors)} unknown weights such as {sorted(tensors)[0]}"


def _refuse_other_kinds(path: Path, head: bytes) -> None:
    if not head:
        raise ValueError(f"{path} is empty (0 bytes); download it again")
    kind = next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        kind = (
            "a web page, perhaps an error or a login page saved under this name; download it again"
        )
    elif start.startswith((b"{", b"[")):
        kind = "a JSON text"
    if kind:
        raise ValueError(f"{path} is no file of weights, but {kind}")


def _begins_as_safetensors(head: bytes) -> bool:
    """The length of a header, and the header's first bracket."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER


def _begins_as_pickle(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"\x80")) and not _begins_as_safetensors(head)


def _check_header(path: Path) -> None:
    """Tell a download that was cut short from a file of another kind."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        start = stream.read(1)
        if size < 9 or start != b"{" or length > _LARGEST_HEADER:
            raise ValueError(f"{path} is no .safetensors file: it does not begin with its header")
        if length > size - 8:
            raise ValueError(
                f"{path} is cut short: its header alone has {length + 8:,} bytes, "
                f"the file {size:,}; download it again"
            )
        stream.seek(8)
        try:
            header = json.loads(stream.read(length))
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
            expected = 8 + length + max(map(int, ends), default=0)
        except (
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            AttributeError,
            RecursionError,
        ) as error:
            raise ValueError(f"{path} is damaged: its header cannot be read") from error
    if size < expected:
        raise ValueError(
            f"{path} is cut short: expected {expected:,} bytes, got {size:,}; download it again"
        )


def _read_pickle(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it calls {found[1]}" if found else "it is no plain set of tensors"
        raise ValueError(
            f"{path} holds more than weights ({what}); it is not loaded, "
            "convert it to .safetensors where you trust it"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(
            f"{path} is cut short, damaged or no file of PyTorch weights: {one_line(error, 200)}"
        ) from error
