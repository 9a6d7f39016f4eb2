"""The container of GGUF: metadata, and where the tensors lie. Every number in the file is checked before it is used.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package ``gguf`` has a reader as well; it trusts
the counts of the file, so that a damaged one can keep it busy without end, and takes seconds for a vocabulary.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError
from .checkpoint import is_shape_of_tensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
LARGEST_RANK = 4
LARGEST_NAME = 65535
LARGEST_HEADER = 1 << 28
"""Bytes; metadata and descriptions of the largest models take a tenth. Beyond it a count is wrong."""

MOST_STRINGS = 1 << 22
"""In the arrays of a file together: in memory a short one takes ten times its bytes. The largest vocabularies, with
their merges, have 2**20."""

_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
"""Format characters of the modules struct and array, by the number of a value's type."""


@dataclass(frozen=True)
class BlockType:
    """How a tensor is stored: runs of `values` values take `nbytes` bytes."""

    name: str
    values: int
    nbytes: int


BLOCK_TYPES = {
    number: BlockType(name, values, nbytes)
    for number, name, values, nbytes in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 40),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
    )
}
"""Types by their number in the file. `gguf_blocks` has those that can be read."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file: outermost dimension first, and where its bytes begin in the file."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """All of a GGUF file but the values of its tensors."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_header(path: Path) -> GgufHeader:
    """Read metadata and tensor descriptions.

    Values are int, float, bool, str, and for arrays lists of str or an `array.array`, with 0 and 1 for bool.

    Raises:
        CheckpointError: not a GGUF file, truncated, or descriptions that cannot be true.
    """
    try:
        with path.open("rb") as file:
            return _Header(path, file, path.stat().st_size).read()
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from None


class _Header:
    """A file that is read from its beginning on; knows how much is left."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.position = self.strings = 0

    def read(self) -> GgufHeader:
        magic = self.take(4, "the magic number")
        if magic != MAGIC:
            raise self.refuse(f"not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
        version = self.number("I", "the version")
        if version not in VERSIONS:
            reason = f"expected GGUF version {' or '.join(map(str, VERSIONS))}, got {version}"
            big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            raise self.refuse(reason + (": the file is big-endian" if big_endian else ""))
        tensor_count = self.number("Q", "the number of tensors")
        pair_count = self.number("Q", "the number of metadata entries")
        self.claim(tensor_count, 24, "tensors")  # name, rank, type and offset of a tensor without dimensions
        self.claim(pair_count, 13, "metadata entries")
        metadata = self.metadata(pair_count)
        described = [self.description() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment % 8:
            raise self.refuse(f"general.alignment: expected a multiple of 8, got {alignment!r}")
        begin = -(-self.position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, type_number, offset in described:
            if name in tensors:
                raise self.refuse("the file has two tensors of this name", name)
            tensors[name] = self.tensor(name, shape, type_number, offset, begin, alignment)
        self.check_overlap(tensors)
        return GgufHeader(metadata, tensors)

    def metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self.string("a metadata key", LARGEST_NAME)
            if key in metadata:
                raise self.refuse(f"the metadata has two entries {key!r}")
            metadata[key] = self.value(key, self.number("I", key))
        return metadata

    def value(self, key: str, type_number: int) -> Any:
        if type_number == _STRING:
            return self.string(key)
        if type_number != _ARRAY:
            number = self.numbers(key, type_number, 1)[0]
            return number != 0 if type_number == _BOOL else number
        element, count = self.number("I", key), self.number("Q", key)
        if element == _STRING:
            self.claim(count, 8, key)
            self.strings += count
            if self.strings > MOST_STRINGS:
                raise self.refuse(f"{key}: expected at most {MOST_STRINGS} strings in all arrays, got {self.strings}")
            return [self.string(key) for _ in range(count)]
        return self.numbers(key, element, count)

    def numbers(self, key: str, type_number: int, count: int) -> array[Any]:
        if type_number not in _NUMBERS:
            raise self.refuse(f"metadata {key!r} has type {type_number}, which is not a number or a string")
        values: array[Any] = array(_NUMBERS[type_number])
        self.claim(count, values.itemsize, key)
        values.frombytes(self.take(count * values.itemsize, key))
        return values

    def description(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string("the name of a tensor", LARGEST_NAME)
        rank = self.number("I", "the rank", name)
        if rank > LARGEST_RANK:
            raise self.refuse(f"expected at most {LARGEST_RANK} dimensions, got {rank}", name)
        shape = tuple(self.number("Q", "the shape", name) for _ in range(rank))[::-1]
        return name, shape, self.number("I", "the type", name), self.number("Q", "the offset", name)

    def tensor(
        self, name: str, shape: tuple[int, ...], type_number: int, offset: int, begin: int, alignment: int
    ) -> GgufTensor:
        type_ = BLOCK_TYPES.get(type_number)
        if type_ is None:
            raise self.refuse(f"type {type_number} is not known", name)
        if not is_shape_of_tensor(shape):
            raise self.refuse(f"no tensor can have the shape {list(shape)}", name)
        count = math.prod(shape)
        row = shape[-1] if shape else 1
        if row % type_.values:
            raise self.refuse(
                f"{type_.name} needs rows of a multiple of {type_.values} values, got {list(shape)}", name
            )
        nbytes = count // type_.values * type_.nbytes
        if offset % alignment:
            raise self.refuse(f"its offset {offset} is not a multiple of the alignment {alignment}", name)
        if begin + offset + nbytes > self.size:
            raise self.refuse(
                f"{type_.name} {list(shape)} takes {nbytes} bytes from offset {begin + offset} on, but the file ends "
                f"at {self.size}: it is truncated, or its header is wrong",
                name,
            )
        return GgufTensor(name, shape, type_, begin + offset, nbytes)

    def check_overlap(self, tensors: dict[str, GgufTensor]) -> None:
        end, last = 0, ""
        for tensor in sorted(tensors.values(), key=lambda each: (each.offset, each.nbytes)):
            if tensor.offset < end and tensor.nbytes:
                raise self.refuse(f"its bytes are also those of tensor {last!r}", tensor.name)
            end, last = max(end, tensor.offset + tensor.nbytes), tensor.name

    def number(self, character: str, what: str, tensor: str | None = None) -> int:
        data = self.take(struct.calcsize(f"<{character}"), what, tensor)
        return int(struct.unpack(f"<{character}", data)[0])

    def string(self, what: str, largest: int | None = None) -> str:
        length = self.number("Q", what)
        if largest is not None and length > largest:
            raise self.refuse(f"{what}: expected at most {largest} bytes, got {length}")
        self.claim(length, 1, what)
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse(f"{what} is not UTF-8") from None

    def claim(self, count: int, size: int, what: str) -> None:
        """Refuse a count that the rest of the file, or of any header, cannot hold."""
        left = self.size - self.position
        if count * size > left:
            raise self.refuse(f"{what}: {count} of at least {size} bytes each, but only {left} bytes are left")
        if self.position + count * size > LARGEST_HEADER:
            raise self.refuse(
                f"{what}: {count} of at least {size} bytes each; expected a header of at most {LARGEST_HEADER} bytes"
            )

    def take(self, count: int, what: str, tensor: str | None = None) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise self.refuse(f"the file ends at {self.size} bytes, within {what}: it is truncated", tensor)
        self.position += count
        return data

    @property
    def refuse(self) -> Callable[..., CheckpointError]:
        return lambda reason, tensor=None: CheckpointError(self.path, reason, tensor)
