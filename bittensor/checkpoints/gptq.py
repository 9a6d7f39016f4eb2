"""Weights as AutoGPTQ and GPTQModel store them, versions 1 and 2.

``qweight`` int32 ``[K * bits / 32, N]`` holds codes along K, lowest bits first; ``qzeros`` int32 ``[G, N * bits / 32]``
zero points along N; ``scales`` ``[G, N]``; ``g_idx`` integers ``[K]``, if there, the group of each column, which
act-order scatters. A code q is ``scale * (q - zero)``.

Version 1 takes one from each zero point, in whole words: a 0 borrows from the next one, and adding gives it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..codes import max_code
from ..ops import pack_weights
from ..prepared_weight import SCALE_DTYPES
from ..quantized_weight import QuantizedWeight
from ..weight_checks import check_tensor
from .checkpoint import Stored
from .int32_words import to_words, unpack, words_per_int32_row
from .packed_format import PackedFormat, ReadPart, Shapes, matrix_shape, type_name
from .reordered_weight import ReorderedWeight, order_of_groups


@dataclass(frozen=True)
class GptqFormat(PackedFormat):
    """GPTQ with codes of `bits` bits in groups of `group_size` columns, -1 for one group a row.

    `version` is 1 or 2: whether ``qzeros`` are less one, or as they are. A row that is narrower is one group.
    """

    bits: int
    group_size: int
    version: int

    name = "gptq"
    marker = "qweight"
    parts = ("qweight", "qzeros", "scales", "g_idx")

    def describe(self, weight: str, shapes: Shapes, read: ReadPart) -> tuple[str, tuple[int, int]]:
        word_rows, outputs = matrix_shape(shapes, "qweight")
        columns = word_rows * (32 // self.bits)
        return type_name(self.bits, self._group_size(columns), "integer"), (outputs, columns)

    def decode(self, tensors: Mapping[str, torch.Tensor]) -> Stored:
        qweight, qzeros, scales = tensors["qweight"], tensors["qzeros"], tensors["scales"]
        word_rows, outputs = matrix_shape({"qweight": tuple(qweight.shape)}, "qweight")
        columns = word_rows * (32 // self.bits)
        group_size = self._group_size(columns)
        groups = -(-columns // group_size)
        check_tensor("qweight", qweight, (torch.int32,), [word_rows, outputs])
        check_tensor("qzeros", qzeros, (torch.int32,), [groups, words_per_int32_row(outputs, self.bits)])
        check_tensor("scales", scales, SCALE_DTYPES, [groups, outputs])
        if self.version == 1:
            qzeros = qzeros + (2**32 - 1) // max_code(self.bits)  # a 1 in each code; int32 wraps
        words = to_words(qweight.t())  # along K they are packed as ours are
        order = self._order(tensors.get("g_idx"), columns, groups, group_size)
        if order is not None:
            words = pack_weights(unpack(qweight.t(), columns, self.bits)[:, order], self.bits)
        weight = QuantizedWeight(
            words,
            scales.t().contiguous(),
            zero_points(unpack(qzeros, outputs, self.bits), self.bits),
            shape=(outputs, columns),
            group_size=group_size,
            bits=self.bits,
        )
        return weight if order is None else ReorderedWeight(weight, order)

    def _order(self, g_idx: torch.Tensor | None, columns: int, groups: int, group_size: int) -> torch.Tensor | None:
        if g_idx is None:
            return None
        check_tensor("g_idx", g_idx, (torch.int32, torch.int64), [columns])
        return order_of_groups(g_idx, groups, group_size)

    def _group_size(self, columns: int) -> int:
        return columns if self.group_size == -1 else min(self.group_size, columns)


def zero_points(zeros: torch.Tensor, bits: int) -> torch.Tensor | None:
    """Codes ``[G, N]`` as ``[N, G]``; None if all are ``2**(bits-1)``, which a symmetric weight need not hold.

    >>> zero_points(torch.tensor([[8, 8]], dtype=torch.uint8), bits=4) is None
    True
    """
    return None if bool((zeros == 1 << (bits - 1)).all()) else zeros.t().contiguous()
