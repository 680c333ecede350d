"""Structure-aware damage of foreign files: what is inside a container is damaged as what it is.

A `.safetensors` header is damaged as JSON, JSON texts inside its fields too, its tensors as
numbers; a zipped `.bin` by its records. Only the standard library.
"""

from __future__ import annotations

import io
import json
import random
import re
import zipfile
from collections.abc import Callable
from typing import Any

ZIP = b"PK\x03\x04"
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 255, 65535, 2**31, 2**32, 2**62, 2**64, 10**400),
    *(0.5, -0.5, 1e-30, 1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "a",
        "\0",
        "nan",
        "inf",
        "-1",
        "1e999",
        "9" * 5000,
        "\ud800",
        "\u202e",
        "../x",
        "x" * 300,
    ),
    *("x" * 300 + ".safetensors", "\0.safetensors", "a/b.bin"),
    *([], [0], {}, [1, 2], {"a": 1}, [[[[]]]]),
)
TEXTS = ("1", "0", "1x1", "2x2", "256x256", "6x6", "causal-8", "zero", "codebook", "flat", "ivf")
DTYPES = ("U8", "I8", "U16", "I16", "F16", "BF16", "F32", "F64", "I64", "BOOL", "F8_E4M3", "F4")
BITS = {"F4": 4, "BF16": 16, "BOOL": 8, "F8_E4M3": 8}
COUNTS = (0, 1, 2, 3, 4, 5, 6, 8, 16, 25, 36, 64, 180, 2**31, 2**61, -1)
NUMBERS = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\x3f")
"""Patterns of bytes: zeros, ones, largest, smallest, NaN, infinity, 1.0."""
MANY = 20
"""Keys of a table whose names matter more than what is deep in it."""
MOST = 2**20
"""Bytes of a tensor that are made up."""
DEEP = "@deep "
"""A text of this beginning and a number is written as so many brackets, which Python's own encoder
gives up on."""
DEPTHS = (20, 300, 700, 900, 980, 3000)
Mutate = Callable[[bytes], bytes]


def mutated(data: bytes, rng: random.Random, plain: Mutate | None = None) -> bytes:
    """A damaged variant of a file.

    Args:
        plain: Damages bytes without a look at what they are; libFuzzer has a better one than ours.
    """
    plain = plain or (lambda data: flipped(data, rng))
    if rng.random() < 0.1:
        return plain(data)
    try:
        return _by_kind(data, rng, plain)
    except Exception:  # an earlier mutation may have made the file unreadable
        return plain(data)


def _by_kind(data: bytes, rng: random.Random, plain: Mutate) -> bytes:
    if data.startswith(ZIP):
        return _zip(data, rng, plain)
    if data[:1] in (b"{", b"["):
        return dumped(changed(json.loads(data), rng))
    header, body = split(data)
    return _tensors(header, body, rng, plain)


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Cut off, lengthened, or with some bytes of another value."""
    kind = rng.randrange(6)
    if kind == 0 or not data:
        return data[: rng.randrange(len(data) + 1)] + rng.randbytes(rng.randrange(3))
    if kind == 1:
        return data + rng.randbytes(rng.randrange(1, 50))
    array = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        array[rng.randrange(len(array))] = rng.randrange(256)
    return bytes(array)


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, tensor bytes) of a `.safetensors` file; ValueError if it is none."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length]) if length < len(data) else None
    if not isinstance(header, dict):
        raise ValueError("no header")
    return header, data[8 + length :]


def joined(header: object, body: bytes) -> bytes:
    text = dumped(header)
    return len(text).to_bytes(8, "little") + text + body


def dumped(value: object) -> bytes:
    text = json.dumps(value, separators=(",", ":"))
    for depth in DEPTHS:
        text = text.replace(f'"{DEEP}{depth}"', "[" * depth + "]" * depth)
    return text.encode()


def _tensors(header: dict[str, Any], body: bytes, rng: random.Random, plain: Mutate) -> bytes:
    kind, names = rng.randrange(10), [n for n in header if n != "__metadata__"]
    if kind == 0:
        return joined(header, plain(body))
    if kind == 1 or not names:
        return joined(changed(header, rng), body)
    if kind in (2, 3):
        return joined(header, overwritten(body, rng))
    if kind in (4, 5) and isinstance(header.get("__metadata__"), dict):
        return joined(header | {"__metadata__": changed(header["__metadata__"], rng)}, body)
    name = rng.choice(names)
    if kind == 6:
        header.pop(name)
    elif kind == 7:
        other = rng.choice([*names, renamed(name, rng), renamed(name, rng)])
        header[other] = header.pop(name)
    else:
        _reshape(header[name], rng)
    return laid_out(header, body, rng) if rng.random() < 0.8 else joined(header, body)


def _reshape(entry: object, rng: random.Random) -> None:
    """Another shape or type for a tensor."""
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
        return
    kind, shape = rng.randrange(6), entry["shape"]
    if kind == 0:
        entry["dtype"] = rng.choice(DTYPES)
    elif kind == 1:
        shape.insert(rng.randrange(len(shape) + 1), rng.choice(COUNTS))
    elif kind == 2:
        entry["shape"] = [1] * rng.choice((30, 65, 1000)) + shape
    elif shape and kind == 3:
        del shape[rng.randrange(len(shape))]
    elif shape:
        shape[rng.randrange(len(shape))] = rng.choice(COUNTS)


def laid_out(header: dict[str, Any], body: bytes, rng: random.Random) -> bytes:
    """The file with every tensor in the place that its shape needs, so that the header is sound."""
    parts, start = [], 0
    for name, entry in header.items():
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        size, old = _size(entry), entry.get("data_offsets")
        if size is None or not isinstance(old, list) or len(old) != 2:
            continue
        part = body[old[0] : old[1]] if all(type(n) is int for n in old) else b""
        part = part[:size] + rng.randbytes(size - len(part[:size]))
        entry["data_offsets"] = [start, start + size]
        parts.append(part)
        start += size
    return joined(header, b"".join(parts))


def _size(entry: dict[str, Any]) -> int | None:
    """Bytes of a tensor; None if that is no bearable number."""
    dtype, count = entry.get("dtype"), 1
    shape = entry.get("shape")
    for n in shape if isinstance(shape, list) else [-1]:
        count = count * n if type(n) is int else -1
    digits = "".join(c for c in str(dtype) if c.isdigit())
    bits = BITS.get(str(dtype)) or int(digits or 8)
    size = count * bits // 8
    return size if 0 <= size <= MOST else None


def overwritten(body: bytes, rng: random.Random) -> bytes:
    """Numbers in the tensors set to what is rare: extremes, NaN, zeros, another's bytes."""
    array = bytearray(body)
    for _ in range(rng.randrange(1, 4)):
        pattern = rng.choice((*NUMBERS, rng.randbytes(2), rng.randbytes(8)))
        start = rng.randrange(len(array) + 1) & ~7
        count = rng.choice((1, 1, 2, 4, 64)) * len(pattern)
        end = min(len(array), start + count)
        array[start:end] = (pattern * 64)[: end - start]
    return bytes(array)


def changed(value: Any, rng: random.Random) -> Any:
    """JSON with one thing in it replaced, taken out, doubled or exchanged for another."""
    if isinstance(value, str) and value[:1] in ("{", "[") and rng.random() < 0.9:
        return _inner(value, rng)
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return _other(value, rng)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, other = rng.choice(keys), rng.choice(keys)
    kind = rng.randrange(4 if len(keys) > MANY else 12)
    if kind == 0:
        del value[key]
    elif kind == 1 and isinstance(value, list):
        value.insert(key, value[other])
    elif kind == 1 and isinstance(value, dict):
        value[renamed(key, rng)] = value.pop(key) if rng.random() < 0.5 else value[key]
    elif kind == 2:
        value[key], value[other] = value[other], value[key]
    else:
        value[key] = changed(value[key], rng)
    return value


def renamed(name: str, rng: random.Random) -> str:
    """Another name, near it or not."""
    number = rng.choice(("0", "1", "7", "99999999999", "9" * 5000, "\u0663"))
    numbered = re.sub(r"\d+", number, name)
    return rng.choice((numbered, numbered, f"{name}x", name[:-1], f"{name}.0", "", "\ud800"))


def _inner(text: str, rng: random.Random) -> str:
    """A text that is JSON itself."""
    try:
        return dumped(changed(json.loads(text), rng)).decode()
    except (ValueError, RecursionError):
        return _other(text, rng)


def _other(value: Any, rng: random.Random) -> Any:
    """Something else in the place of a value, near it or not."""
    kind = rng.randrange(8)
    if kind == 0 and type(value) in (int, float):
        return rng.choice((value + 1, value - 1, value * 2, -value, str(value)))
    if kind == 1 and isinstance(value, str):
        return rng.choice((value[:-1], value + value, value.upper(), value[::-1]))
    if kind == 2:
        return f"{DEEP}{rng.choice(DEPTHS)}"
    return rng.choice((*VALUES, *TEXTS))


def _zip(data: bytes, rng: random.Random, plain: Mutate) -> bytes:
    """An archive with a record damaged, taken out, renamed or compressed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice([*records, *[n for n in records if n.endswith(".pkl")] * 10])
    kind, method = rng.randrange(12), zipfile.ZIP_STORED
    if kind == 0:
        del records[name]
    elif kind == 1:
        records[rng.choice((*records, "x", name + "0"))] = records.pop(name)
    elif kind == 2:
        method = zipfile.ZIP_DEFLATED
    elif kind == 3:
        records[name] = records[name][:-1]
    else:
        records[name] = pickled(records[name], rng) if kind < 9 else plain(records[name])
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return written.getvalue()


def pickled(data: bytes, rng: random.Random) -> bytes:
    """A pickle with one of its small numbers, or one of its opcodes, replaced."""
    array = bytearray(data)
    numbers = [i for i, byte in enumerate(array[:-2]) if byte in b"KMJ"]
    if numbers and rng.random() < 0.8:
        place = rng.choice(numbers)
        width = {ord("K"): 1, ord("M"): 2, ord("J"): 4}[array[place]]
        array[place + 1 : place + 1 + width] = rng.choice(
            (b"\0" * width, b"\xff" * width, b"\x01" + b"\0" * (width - 1), rng.randbytes(width))
        )
    elif array:
        array[rng.randrange(len(array))] = rng.choice(b"().0NIJKMT]}abdehjlopqrstu\x80\x85\x86\x87")
    return bytes(array)
