"""Checkpoints in GGUF, the format of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import torch

from ..codes import words_per_row
from ..errors import CheckpointError
from ..packing import pack_codes
from ..quantized_weight import QuantizedWeight
from .checkpoint import Checkpoint, Stored, TensorEntry
from .gguf_blocks import DECODERS, PLAIN_DTYPES, BlockDecoder
from .gguf_container import GgufTensor, read_header

_VALUES_AT_ONCE = 1 << 20
"""Weights decoded at a time: decoding takes a few bytes for each, beside the result."""


class GgufCheckpoint(Checkpoint):
    """A GGUF file. `gguf_blocks` lists the types that can be read; the others are listed, and refused when read.

    Args:
        path: the file.

    Raises:
        CheckpointError: not a GGUF file, truncated, or a header that cannot be true; or one part of several.
    """

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        parts = header.metadata.get("split.count", 1)
        if type(parts) is int and parts > 1:
            raise self.refuse(
                f"expected a whole model, got one of {parts} parts of it; join them with "
                "llama-gguf-split --merge FIRST-PART OUT"
            )
        self.config = header.metadata
        self._tensors = header.tensors
        self.entries = {
            name: TensorEntry(name, tensor.type.name, tensor.shape, tensor.nbytes)
            for name, tensor in header.tensors.items()
        }

    def read(self, name: str) -> Stored:
        tensor = self._tensors[name]
        try:
            with self.path.open("rb") as file:
                file.seek(tensor.offset)
                if tensor.type.name in PLAIN_DTYPES:
                    return self._plain(file, tensor)
                if tensor.type.name in DECODERS:
                    return self._quantized(file, tensor, DECODERS[tensor.type.name])
        except OSError as error:
            raise self.refuse(error.strerror or str(error), name) from None
        readable = ", ".join((*PLAIN_DTYPES, *DECODERS))
        raise self.refuse(f"type {tensor.type.name} is not supported; can read {readable}", name)

    def _plain(self, file: BinaryIO, tensor: GgufTensor) -> torch.Tensor:
        values = self._bytes(file, tensor.name, tensor.nbytes)
        return values.view(PLAIN_DTYPES[tensor.type.name]).view(tensor.shape)

    def _quantized(self, file: BinaryIO, tensor: GgufTensor, decoder: BlockDecoder) -> QuantizedWeight:
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            expected = "expected two dimensions of at least 1"
            raise self.refuse(f"{tensor.type.name}: {expected}, got {list(tensor.shape)}", tensor.name)
        rows, columns = tensor.shape
        words = torch.empty((rows, words_per_row(columns, decoder.bits)), dtype=torch.int64, device="cpu")
        scales = torch.empty((rows, columns // decoder.group_size), dtype=decoder.scale_dtype, device="cpu")
        offsets = torch.empty_like(scales) if decoder.zero == "float" else None
        step = max(1, _VALUES_AT_ONCE // columns)
        row_bytes = tensor.nbytes // rows
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            blocks = self._bytes(file, tensor.name, (part.stop - start) * row_bytes)
            groups = decoder.decode(blocks.view(part.stop - start, -1, tensor.type.nbytes))
            words[part] = pack_codes(groups.codes, decoder.bits)
            scales[part] = groups.scales
            if offsets is not None and groups.offsets is not None:
                offsets[part] = groups.offsets
        try:
            return QuantizedWeight(
                words, scales, None, offsets, shape=(rows, columns), bits=decoder.bits, group_size=decoder.group_size
            )
        except ValueError as error:  # a scale or an offset that is not finite
            raise self.refuse(str(error), tensor.name) from None

    def _bytes(self, file: BinaryIO, name: str, count: int) -> torch.Tensor:
        data = bytearray(count)
        if file.readinto(data) < count:  # type: ignore[attr-defined]
            raise CheckpointError(self.path, "the file ended while it was read: it has been truncated since", name)
        return torch.frombuffer(data, dtype=torch.uint8) if count else torch.empty(0, dtype=torch.uint8, device="cpu")
