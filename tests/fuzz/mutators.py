"""Making similar inputs: bytes, text, JSON, files of a folder, and the formats that hold headers.

Every function takes the input and a random generator. Without Atheris they are the whole search;
with it they are mixed with its own.
"""

from __future__ import annotations

import copy
import io
import json
import random
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]

_NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 4096, 65535, 2**31 - 1, 2**31, 2**32, 2**63, 2**64)
_STRINGS = (
    *("", " ", "a", "\x00", "\x1b[31mred\x1b[0m", "two\nlines", "\u2028", "\u202egnp", "\x9b2J"),
    *(
        "\ud800",
        "\U0001f600",
        "é",
        "٣",
        "²",
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\x",
        "C:\\x",
    ),
    *("-1", "1e999", "nan", "inf", "1_000", "0x10", "%s%n", "{0.__class__}", "con.txt", "a" * 300),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], {"": {}}, 0.5, -0.0, 1e308, 1e-320, 10**30, -(10**30)),
    *(float("nan"), float("inf"), float("-inf")),
    *_NUMBERS,
    *_STRINGS,
)
"""What a program does not expect in place of a value."""


def binary(data: bytes, rng: random.Random) -> bytes:
    """Change, add, repeat or remove some bytes."""
    out = bytearray(data or b"\0")
    for _ in range(1 << rng.randrange(4)):
        at = rng.randrange(len(out) + 1)
        length = min(1 << rng.randrange(8), len(out))
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            out[at:at] = rng.randbytes(length)
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = out[at : at + length] * rng.randrange(1, 20)
        else:
            number = rng.choice(_NUMBERS) % 2**64
            width = rng.choice((1, 2, 4, 8))
            out[at : at + width] = (number % 2 ** (8 * width)).to_bytes(
                width, rng.choice(("little", "big"))
            )
        out = out or bytearray(b"\0")
    return bytes(out)


def text(words: Sequence[str]) -> Mutator:
    """A mutator of text that knows the words of its syntax."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        found = data.decode("utf-8", "replace")
        for _ in range(1 << rng.randrange(4)):
            at = rng.randrange(len(found) + 1)
            length = 1 << rng.randrange(7)
            piece = found[at : at + length]
            kind = rng.randrange(6)
            if kind == 0:
                piece = ""
            elif kind == 1:
                piece *= 1 << rng.randrange(10)
            elif kind == 2:
                piece = rng.choice(words) * (1 << rng.randrange(rng.choice((1, 1, 10))))
            elif kind == 3:
                piece = _printable(rng.choice(_STRINGS)) + piece
            elif kind == 4:
                piece = rng.choice(words) + piece + rng.choice(words)
            else:
                piece = chr(rng.choice((rng.randrange(128), rng.randrange(0xD800)))) + piece
            found = found[:at] + piece + found[at + length :]
        return found.encode("utf-8", "replace")

    return mutate


def _printable(string: str) -> str:
    return string.encode("utf-8", "replace").decode()


def json_text(words: Sequence[Any] = ()) -> Mutator:
    """A mutator of JSON that knows keys and values of its format; other data as bytes."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        value = parsed(data)
        if value is None or rng.random() < 0.1:
            return binary(data, rng)
        return dumped(change(value, rng, words), rng) or binary(data, rng)

    return mutate


def parsed(data: bytes) -> Any:
    """The value of a JSON text; None if it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def dumped(value: Any, rng: random.Random) -> bytes:
    """JSON of a value, in ASCII or not; empty if it is nested too deeply for this program."""
    try:
        if rng.random() < 0.5:
            return json.dumps(value, ensure_ascii=False, indent=1).encode()
    except (UnicodeEncodeError, RecursionError):  # a lone surrogate
        pass
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b""


def change(value: Any, rng: random.Random, words: Sequence[Any] = ()) -> Any:
    """A JSON value with some of its parts replaced, removed, repeated or moved."""
    root = [value]
    for _ in range(1 << rng.randrange(3)):
        places = list(_places(root))
        holder, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind <= 2:
            holder[key] = copy.deepcopy(rng.choice((*VALUES, *words, *words)))
        elif kind == 3 and holder is not root:
            del holder[key]
        elif kind == 4:
            other, there = rng.choice(places)
            holder[key] = _copied(other[there])
        elif kind == 5 and isinstance(holder, dict):
            holder[str(rng.choice((*_STRINGS, *words)))] = holder[key]
        elif kind == 6 and isinstance(holder[key], int | float):
            holder[key] = _other_number(holder[key], rng)
        elif kind == 7:
            holder[key] = _wrapped(holder[key], rng)
    return root[0]


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return None


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Every place of a value: its holder, and its index or key there."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting and len(found) < 3000:
        holder = waiting.pop()
        keys = range(len(holder)) if isinstance(holder, list) else list(holder)
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys if isinstance(holder[key], list | dict)]
    return found


def _other_number(number: float, rng: random.Random) -> Any:
    factors = (-1, 0, 2, 0.5, 1e6, 1e-6, 10**20)
    return rng.choice((*(number * factor for factor in factors), number + 1, number - 1))


def _wrapped(value: Any, rng: random.Random) -> Any:
    """A value in something else: a list, an object, a text, or very deep."""
    kind = rng.randrange(5)
    if kind == 0:
        return [value] * rng.choice((1, 2, 500))
    if kind == 1:
        return {"a": value}
    if kind == 2:
        return str(value)[:200] * rng.choice((1, 2, 50))
    if kind == 3:
        for _ in range(rng.choice((5, 90, 400))):
            value = [value]
        return value
    return rng.choice((*VALUES,))


# Several files in one input: each begins with a line "=== NAME".


def joined(files: Mapping[str, bytes]) -> bytes:
    """Files as one input."""
    return b"\n".join(b"=== " + name.encode() + b"\n" + data for name, data in files.items())


def split(data: bytes) -> dict[str, bytes]:
    """The files of an input; what comes before the first name is ignored."""
    found = {}
    for part in (b"\n" + data).split(b"\n=== ")[1:]:
        name, _, content = part.partition(b"\n")
        found[name.decode("utf-8", "replace")] = content
    return found


def files(known: Mapping[str, bytes], by_suffix: Mapping[str, Mutator]) -> Mutator:
    """A mutator of inputs with several files.

    Args:
      known: the files as they are without change, from which one is added.
      by_suffix: how a file is mutated by the end of its name; default as bytes.
    """

    def mutate(data: bytes, rng: random.Random) -> bytes:
        found = {name: content for name, content in split(data).items() if name in known}
        if not found or rng.random() < 0.3:
            name = rng.choice(list(known))
            found[name] = known[name]
        elif len(found) > 1 and rng.random() < 0.2:
            del found[rng.choice(list(found))]
        name = rng.choice(list(found))
        suffix = next((s for s in by_suffix if name.endswith(s)), "")
        found[name] = by_suffix.get(suffix, binary)(found[name], rng)
        return joined(found)

    return mutate


# Formats with a header


def safetensors(words: Sequence[Any] = ()) -> Mutator:
    """A mutator of .safetensors files: of the JSON header, with the right length before it."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header, body = data[8 : 8 + length], data[8 + length :]
        value = parsed(header)
        if value is None or rng.random() < 0.15:
            return binary(data, rng)
        changed = dumped(change(value, rng, words), rng) or header
        if rng.random() < 0.1:
            body = binary(body, rng)
        return len(changed).to_bytes(8, "little") + changed + body

    return mutate


def zip_file(data: bytes, rng: random.Random) -> bytes:
    """A mutator of .zip and .npz files: of the content of one member, or of the bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(i.filename, archive.read(i)) for i in archive.infolist()[:20]]
    except Exception:  # noqa: BLE001  an input of another kind
        return binary(data, rng)
    if not members or rng.random() < 0.2:
        return binary(data, rng)
    at = rng.randrange(len(members))
    name, content = members[at]
    kind = rng.randrange(8)
    if kind == 0:
        members.append(members[at])
    elif kind == 1:
        members.pop(at)
    elif kind == 2:
        members[at] = (_printable(rng.choice(_STRINGS)).replace("\0", "") or "x", content)
    elif kind == 3:
        members[at] = (name, content + bytes(1 << rng.randrange(20)))
    else:
        members[at] = (name, npy(content, rng))
    out = io.BytesIO()
    how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", how) as archive:
        warnings.simplefilter("ignore")  # two members of one name
        for each, value in members:
            archive.writestr(zipfile.ZipInfo(each), value, how)
    return out.getvalue()


def npy(data: bytes, rng: random.Random) -> bytes:
    """A mutator of .npy files: of the text of the header, or of the bytes."""
    if data[:6] != b"\x93NUMPY" or rng.random() < 0.3:
        return binary(data, rng)
    length = int.from_bytes(data[8:10], "little")
    words = ("True", "'<f4'", "'|O'", "'<U9'", "'<f8'", "1000000000", "-1", "()", "(((", "shape")
    header = text(words)(data[10 : 10 + length].rstrip(), rng)
    return data[:8] + min(len(header), 65535).to_bytes(2, "little") + header + data[10 + length :]


def png(data: bytes, rng: random.Random) -> bytes:
    """A mutator of .png files: of a chunk, whose checksum is made to agree."""
    chunks, at = [], 8
    while data[:4] == b"\x89PNG" and at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks or rng.random() < 0.2:
        return binary(data, rng)
    place = rng.randrange(len(chunks))
    name, content = chunks[place]
    kind = rng.randrange(4)
    if kind == 0:
        chunks.insert(place, rng.choice(chunks))
    elif kind == 1:
        names = (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"iCCP", b"acTL", b"tRNS", b"PLTE", b"pHYs")
        chunks[place] = (rng.choice(names), content)
    elif kind == 2 and len(chunks) > 1:
        chunks.pop(place)
    else:
        chunks[place] = (name, binary(content, rng))
    out = data[:8]
    for name, content in chunks:
        out += len(content).to_bytes(4, "big") + name + content
        out += zlib.crc32(name + content).to_bytes(4, "big")
    return out


def protobuf(data: bytes, rng: random.Random) -> bytes:
    """A mutator of protocol buffers: of one field, at any depth, with the right lengths around."""
    found = _fields(data)
    if not found or rng.random() < 0.15:
        return binary(data, rng)
    place = rng.randrange(len(found))
    number, wire, value = found[place]
    kind = rng.randrange(8)
    if wire == 2 and kind < 4:
        found[place] = (number, wire, protobuf(value, rng))
    elif wire == 0 and kind < 4:
        found[place] = (number, wire, _varint(rng.choice(_NUMBERS) % 2**64))
    elif kind == 4:
        found.insert(place, rng.choice(found))
    elif kind == 5:
        found.pop(place)
    elif kind == 6:
        found[place] = (rng.randrange(30), wire, value)
    elif wire == 2:
        found[place] = (number, wire, _printable(rng.choice(_STRINGS)).encode())
    return b"".join(
        _varint(number << 3 | wire) + (_varint(len(value)) if wire == 2 else b"") + value
        for number, wire, value in found
    )


def _fields(data: bytes) -> list[tuple[int, int, bytes]]:
    """Number, wire type and value of each field; [] if it is no message."""
    found, at = [], 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        wire, start = tag & 7, at
        if wire == 0:
            _, at = _read_varint(data, at)
        elif wire == 2:
            length, start = _read_varint(data, at)
            at = start + length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            return []
        if at > len(data) or not tag >> 3:
            return []
        found.append((tag >> 3, wire, data[start:at]))
    return found


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        number |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return number, at
    return 0, len(data) + 1
