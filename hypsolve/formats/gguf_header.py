"""Headers of GGUF files: metadata, and the names, shapes and types of all tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little
endian. No weight is read, so a file that is cut off behind its header will do, as one gets from
``curl --range 0-30000000``. Counts and lengths in a file are not trusted: none is used before
it is checked against the size of the file, and at most `MAX_HEADER_BYTES` are read.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 2**27  # real headers have up to 20 MB, of which most is the vocabulary
MAX_KEYS = 2**16
MAX_TENSORS = 2**18
MAX_ITEMS = 2**23  # entries of an array
MAX_KEPT = 10_000  # entries of an array that is kept, and characters of a string
MAX_NAME_BYTES = 2**16 - 1
MAX_DIMS = 4
MAX_WEIGHTS = 2**60  # of a tensor
CHUNK_BYTES = 2**20
_STRING, _ARRAY = 8, 9
_FORMATS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q",
    11: "<q", 12: "<d",
}  # fmt: skip
_BOOL = 7
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)

# number of the type: name, weights of a block, bytes of a block (ggml_type and its type traits)
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}  # fmt: skip

Number = int | float | bool
Value = Number | str | tuple[Number, ...] | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: its name, shape (the row length first), type and size."""

    name: str
    shape: tuple[int, ...]
    type: str
    n_weights: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a GGUF file, or of all shards of a model.

    Values of metadata that are long, such as the vocabulary, are None.
    """

    path: Path
    metadata: dict[str, Value]
    tensors: tuple[Tensor, ...]


def is_gguf(path: Path) -> bool:
    """Return whether a path is that of a GGUF file, by its ending or its first bytes."""
    if path.name.lower().endswith(".gguf"):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def model_name(path: Path) -> str:
    """Return the name of a file without its ending and the number of the shard."""
    match = _SHARD.fullmatch(path.name)
    if match:
        return match["stem"]
    return path.name[:-5] if path.name.lower().endswith(".gguf") else path.name


def read_headers(path: Path) -> Header:
    """Read the header of a GGUF file, or of all shards of which it is one.

    Raises
    ------
    ValueError
        If a header is invalid; the message names the file, the field, the rule and the value.
    OSError
        If a file cannot be read.
    """
    match = _SHARD.fullmatch(path.name)
    if match is None:
        header = read_header(path)
        if (count := header.metadata.get("split.count", 1)) not in (0, 1):
            raise ValueError(
                f"{path}: a shard must be named as by llama-gguf-split,"
                f" NAME-00001-of-{_five(count)}.gguf, got {path.name!r:.60}"
            )
        return header
    n_shards = int(match["count"])
    if not 1 <= int(match["number"]) <= n_shards:
        raise ValueError(f"{path}: number of the shard must be from 1 to {n_shards}")
    first: Header | None = None
    tensors: dict[str, Tensor] = {}
    for number in range(1, n_shards + 1):
        shard = path.with_name(f"{match['stem']}-{number:05d}-of-{n_shards:05d}{path.suffix}")
        if not shard.is_file():
            raise ValueError(f"{path}: shard {shard.name!r} must be beside it, got none")
        header = read_header(shard)
        first = first or header
        _check_shard(header, number, n_shards)
        for tensor in header.tensors:
            if tensor.name in tensors:
                raise ValueError(
                    f"{shard}: tensor {tensor.name!r:.60} must be in one shard, got a second"
                )
            tensors[tensor.name] = tensor
    assert first is not None
    total = first.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise ValueError(
            f"{path}: the shards must hold split.tensors.count = {total!r:.60} tensors,"
            f" got {len(tensors)}"
        )
    return Header(first.path, first.metadata, tuple(tensors.values()))


def _five(number: Value) -> str:
    return f"{number:05d}" if isinstance(number, int) else "COUNT"


def _check_shard(header: Header, number: int, n_shards: int) -> None:
    for key, expected in (("split.no", number - 1), ("split.count", n_shards)):
        if (value := header.metadata.get(key, expected)) != expected:
            raise ValueError(
                f"{header.path}: {key} must be {expected}, as its name says, got {value!r:.60}"
            )


def read_header(path: Path) -> Header:
    """Read the header of a single GGUF file."""
    with path.open("rb") as file:
        reader = _Reader(file, path)
        if reader.take(4, "magic") != MAGIC:
            raise ValueError(f"{path}: not a GGUF file: its first bytes must be 'GGUF'")
        version = reader.number("<I", "version")
        if version not in (2, 3):
            swapped = int.from_bytes(int(version).to_bytes(4, "little"), "big")
            hint = " (big endian)" if swapped in (2, 3) else ""
            raise ValueError(f"{path}: version must be 2 or 3, got {version}{hint}")
        n_tensors = reader.count("tensor_count", MAX_TENSORS, 24)
        n_keys = reader.count("metadata_kv_count", MAX_KEYS, 13)
        metadata = _metadata(reader, n_keys)
        return Header(path, metadata, tuple(_tensors(reader, n_tensors, metadata)))


class _Reader:
    """The first bytes of a file, read as far as they are asked for."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.size = path.stat().st_size
        self.data = bytearray()
        self.at = 0

    def left(self) -> int:
        """Return how many bytes of the header may follow."""
        return min(self.size, MAX_HEADER_BYTES) - self.at

    def skip(self, n_bytes: int, what: str) -> int:
        """Step over some bytes and return where they begin."""
        begin, end = self.at, self.at + n_bytes
        if n_bytes > self.left():
            if end > self.size:
                rule = f"end within the file of {self.size} bytes"
                raise ValueError(
                    f"{self.path}: {what} must {rule}, got an end at {end}; the file is cut"
                    " short or broken"
                )
            raise ValueError(
                f"{self.path}: the header must have at most {MAX_HEADER_BYTES} bytes, got"
                f" {what} with an end at {end}"
            )
        while len(self.data) < end:
            chunk = self.file.read(max(CHUNK_BYTES, end - len(self.data)))
            if not chunk:
                raise ValueError(f"{self.path}: {what} must end within the file; it shrank")
            self.data += chunk
        self.at = end
        return begin

    def take(self, n_bytes: int, what: str) -> bytes:
        """Return the next bytes."""
        begin = self.skip(n_bytes, what)
        return bytes(self.data[begin : begin + n_bytes])

    def number(self, form: str, what: str) -> Number:
        """Return the next number."""
        begin = self.skip(struct.calcsize(form), what)
        (value,) = struct.unpack_from(form, self.data, begin)
        assert isinstance(value, int | float)
        return value

    def count(self, what: str, maximum: int, min_bytes: int) -> int:
        """Return the next count, of things that have at least `min_bytes` each."""
        value = int(self.number("<Q", what))
        if value > maximum:
            raise ValueError(f"{self.path}: {what} must be at most {maximum}, got {value}")
        if value * min_bytes > self.left():
            raise ValueError(
                f"{self.path}: {what} must leave room for its content in the file of"
                f" {self.size} bytes, got {value}"
            )
        return value

    def text(self, what: str, maximum: int) -> str:
        """Return the next string."""
        content = self.take(self.count(f"length of {what}", maximum, 1), what)
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise ValueError(
                f"{self.path}: {what} must be UTF-8, got {content!r:.60}"
            ) from None


def _metadata(reader: _Reader, n_keys: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for i in range(n_keys):
        key = reader.text(f"key {i}", MAX_NAME_BYTES)
        if key in metadata:
            raise ValueError(f"{reader.path}: key {key!r:.60} must occur once, got a second")
        kind = int(reader.number("<I", f"type of {key!r:.60}"))
        metadata[key] = _value(reader, f"value of {key!r:.60}", kind)
    return metadata


def _value(reader: _Reader, what: str, kind: int) -> Value:
    if kind in _FORMATS:
        value = reader.number(_FORMATS[kind], what)
        if kind != _BOOL:
            return value
        if value not in (0, 1):
            raise ValueError(
                f"{reader.path}: {what} must be true (1) or false (0), got {value}"
            )
        return bool(value)
    if kind == _STRING:
        n_bytes = reader.count(f"length of {what}", MAX_HEADER_BYTES, 1)
        content = reader.take(n_bytes, what)
        return content.decode(errors="replace") if n_bytes <= MAX_KEPT else None
    if kind == _ARRAY:
        return _array(reader, what)
    raise ValueError(f"{reader.path}: type of {what} must be from 0 to 12, got {kind}")


def _array(reader: _Reader, what: str) -> tuple[Number, ...] | None:
    kind = int(reader.number("<I", f"type of entries in {what}"))
    length = f"length of {what}"
    if kind == _STRING:
        for _ in range(reader.count(length, MAX_ITEMS, 8)):
            reader.skip(
                reader.count(f"length of an entry in {what}", MAX_HEADER_BYTES, 1), what
            )
        return None
    if kind not in _FORMATS:
        raise ValueError(
            f"{reader.path}: entries in {what} must be numbers or strings (a type from 0 to 8,"
            f" or 10 to 12), got {kind}"
        )
    form = _FORMATS[kind]
    n_items = reader.count(length, MAX_ITEMS, struct.calcsize(form))
    content = reader.take(n_items * struct.calcsize(form), what)
    if n_items > MAX_KEPT:
        return None
    return struct.unpack(f"<{n_items}{form[1]}", content)


def _tensors(reader: _Reader, n_tensors: int, metadata: dict[str, Value]) -> Iterator[Tensor]:
    """Yield all tensors; each must begin where the one before ends, as ggml demands."""
    alignment = metadata.get("general.alignment", 32)
    if (
        not isinstance(alignment, int)
        or not 1 <= alignment <= 2**16
        or alignment & (alignment - 1)
    ):
        raise ValueError(
            f"{reader.path}: general.alignment must be a power of 2 up to 65536,"
            f" got {alignment!r:.60}"
        )
    names = set[str]()
    end = 0
    for i in range(n_tensors):
        tensor, offset = _tensor(reader, i)
        if tensor.name in names:
            raise ValueError(
                f"{reader.path}: tensor {tensor.name!r:.60} must occur once, got a second"
            )
        names.add(tensor.name)
        begin = -(-end // alignment) * alignment
        if offset != begin:
            raise ValueError(
                f"{reader.path}: tensor {tensor.name!r:.60}: offset must be {begin}, where the"
                f" tensor before ends, got {offset}"
            )
        end = begin + tensor.n_bytes
        yield tensor


def _tensor(reader: _Reader, i: int) -> tuple[Tensor, int]:
    """Return the next tensor and its offset in the data."""
    name = reader.text(f"name of tensor {i}", MAX_NAME_BYTES)
    owner = f"{reader.path}: tensor {name!r:.60}"
    what = f"tensor {name!r:.60}"
    n_dims = int(reader.number("<I", what))
    if not 1 <= n_dims <= MAX_DIMS:
        raise ValueError(f"{owner}: n_dimensions must be from 1 to {MAX_DIMS}, got {n_dims}")
    shape = tuple(int(reader.number("<Q", what)) for _ in range(n_dims))
    kind = int(reader.number("<I", what))
    offset = int(reader.number("<Q", what))
    if kind not in TYPES:
        raise ValueError(f"{owner}: type must be one of ggml's, got {kind}")
    type_name, per_block, block_bytes = TYPES[kind]
    n_weights = 1
    for length in shape:
        n_weights *= length
    if not 1 <= n_weights <= MAX_WEIGHTS:
        raise ValueError(f"{owner}: dimensions must have 1 to 2**60 weights, got {shape}")
    if shape[0] % per_block:
        raise ValueError(
            f"{owner}: first dimension must be a multiple of {per_block}, the block of"
            f" {type_name}, got {shape[0]}"
        )
    n_bytes = n_weights // per_block * block_bytes
    return Tensor(name, shape, type_name, n_weights, n_bytes), offset
