"""Weights as AutoAWQ stores them, version "gemm".

``qweight`` int32 ``[K, N / 8]`` and ``qzeros`` int32 ``[G, N / 8]`` hold codes of 4 bits along N: nibble i of a word,
the lowest first, is the output 0, 2, 4, 6, 1, 3, 5, 7 of its eight. ``scales`` is ``[G, N]``. A code q is
``scale * (q - zero)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..packing import pack_codes
from ..prepared_weight import SCALE_DTYPES
from ..quantized_weight import QuantizedWeight
from ..weight_checks import check_tensor
from .checkpoint import Stored
from .gptq import zero_points
from .int32_words import unpack
from .packed_format import PackedFormat, ReadPart, Shapes, matrix_shape, type_name

BITS = 4
_CODES_OF_WORD = 8
_NIBBLE_OF_OUTPUT = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where each of eight outputs lies: the inverse of 0, 2, 4, 6, 1, 3, 5, 7."""


@dataclass(frozen=True)
class AwqFormat(PackedFormat):
    """AWQ "gemm" in groups of `group_size` columns, -1 for one group a row."""

    group_size: int

    name = "awq"
    marker = "qweight"
    parts = ("qweight", "qzeros", "scales")

    def describe(self, weight: str, shapes: Shapes, read: ReadPart) -> tuple[str, tuple[int, int]]:
        columns, word_columns = matrix_shape(shapes, "qweight")
        return type_name(BITS, self._group_size(columns), "integer"), (word_columns * _CODES_OF_WORD, columns)

    def decode(self, tensors: Mapping[str, torch.Tensor]) -> Stored:
        qweight, qzeros, scales = tensors["qweight"], tensors["qzeros"], tensors["scales"]
        columns, word_columns = matrix_shape({"qweight": tuple(qweight.shape)}, "qweight")
        outputs, group_size = word_columns * _CODES_OF_WORD, self._group_size(columns)
        groups = -(-columns // group_size)
        check_tensor("qweight", qweight, (torch.int32,), [columns, word_columns])
        check_tensor("qzeros", qzeros, (torch.int32,), [groups, word_columns])
        check_tensor("scales", scales, SCALE_DTYPES, [groups, outputs])
        return QuantizedWeight(
            pack_codes(_in_order(qweight).t(), BITS),
            scales.t().contiguous(),
            zero_points(_in_order(qzeros), BITS),
            shape=(outputs, columns),
            group_size=group_size,
            bits=BITS,
        )

    def _group_size(self, columns: int) -> int:
        return columns if self.group_size == -1 else self.group_size


def _in_order(packed: torch.Tensor) -> torch.Tensor:
    """int32 ``[rows, W]`` to codes ``[rows, 8 * W]``, one for each output in turn."""
    codes = unpack(packed, packed.shape[1] * _CODES_OF_WORD, BITS)
    return codes.reshape(len(codes), -1, _CODES_OF_WORD)[..., list(_NIBBLE_OF_OUTPUT)].flatten(1)
