"""A group-quantized weight cut into blocks of a size that a library takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bittensor import PreparedWeight, QuantizedWeight
from bittensor.codes import codes_per_word, max_code


@dataclass(frozen=True)
class Blocks:
    """A weight ``[N, K]`` as B blocks of columns, the last of which may be filled up.

    Attributes:
        codes: uint8 ``[N, B, size]``; columns from K on are 0.
        scales: of any float dtype, ``[N, B]``.
        zeros: uint8 ``[N, B]``, or None if codes are centered at ``2**(bits - 1)``.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None

    @property
    def size(self) -> int:
        """Columns of a block."""
        return self.codes.shape[2]

    def with_scales(self, dtype: torch.dtype) -> Blocks:
        """The same with scales of `dtype`."""
        return replace(self, scales=self.scales.to(dtype))

    @classmethod
    def of(cls, weight: PreparedWeight, sizes: Sequence[int] = ()) -> Blocks:
        """A weight of the canonical layout in blocks of the largest of `sizes` that divides its groups.

        Without `sizes`, a block is a group. A row that is one group is cut into blocks of the smallest of `sizes` that
        holds it, or of the largest.
        """
        tensors = QuantizedWeight.from_canonical(weight).tensors()
        rows, columns = weight.form.shape
        size = group = weight.form.group_size
        if sizes and group == columns:
            size = min((each for each in sizes if each >= columns), default=max(sizes))
        elif sizes:
            size = max(each for each in sizes if group % each == 0)
        blocks = -(-columns // size)
        codes = torch.zeros(rows, blocks * size, dtype=torch.uint8)
        codes[:, :columns] = unpack(tensors["words"], columns, weight.form.bits)
        group_of_block = torch.arange(blocks) * size // group
        zeros = tensors.get("zeros")
        return cls(
            codes.view(rows, blocks, size),
            tensors["scales"][:, group_of_block],
            None if zeros is None else zeros[:, group_of_block],
        )


def unpack(words: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
    """int64 words to uint8 codes ``[N, columns]``."""
    lanes = (words.unsqueeze(-1) >> (torch.arange(codes_per_word(bits)) * bits)) & max_code(bits)
    return lanes.flatten(-2)[:, :columns].to(torch.uint8)


def in_bytes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes along the last dimension in bytes, the first one lowest: ``[..., ceil(columns * bits / 8)]``.

    >>> in_bytes(torch.tensor([1, 2, 3], dtype=torch.uint8), bits=4).tolist()
    [33, 3]
    """
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % per_byte))
    lanes = padded.reshape(*padded.shape[:-1], -1, per_byte) << (torch.arange(per_byte, dtype=torch.uint8) * bits)
    joined: torch.Tensor = lanes.sum(-1, dtype=torch.uint8)
    return joined
