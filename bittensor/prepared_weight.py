"""The form of a group-quantized weight, and a weight in the layout of a backend, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .codes import words_per_row

GROUP_BITS = (2, 4, 8)
"""Code widths of a group-quantized weight."""

ZERO_KINDS = ("symmetric", "integer", "float")
"""What a group holds beside its scale: nothing, a code that stands for 0, or an offset."""

SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Dtypes in which scales and offsets are kept; each is widened to float32 exactly."""

ACTIVATION_MODES = ("int8", "float")
"""How `bittensor.linear` takes its input: rounded to int8 group by group, or as it is."""

EPILOGUES = (None, "relu", "gelu", "silu")
"""Functions that `bittensor.linear` can apply to its result."""

GROUP_SIZE_MULTIPLE = 8
"""Group sizes are multiples of this many columns, or a whole row."""

CANONICAL_LAYOUT = "canonical"
"""The layout whose tensors are words, scales, and zeros or offsets, as a `bittensor.QuantizedWeight` shows them."""


@dataclass(frozen=True, slots=True)
class WeightForm:
    """Everything about a group-quantized weight ``[N, K]`` but its values.

    >>> WeightForm(shape=(2, 40), bits=4, group_size=16, zero="integer", scale_dtype=torch.float16).groups
    3
    """

    shape: tuple[int, int]
    bits: int
    group_size: int
    zero: str
    scale_dtype: torch.dtype

    @property
    def groups(self) -> int:
        """Groups of a row, G = ceil(K / group_size); the last may be shorter."""
        return -(-self.shape[1] // self.group_size)

    @property
    def nbytes(self) -> int:
        """Bytes of words, scales, zeros and offsets."""
        rows, columns = self.shape
        size = self.scale_dtype.itemsize
        of_group = {"symmetric": size, "integer": size + 1, "float": 2 * size}[self.zero]
        return 8 * rows * words_per_row(columns, self.bits) + rows * self.groups * of_group


@dataclass(frozen=True, eq=False, slots=True)
class PreparedWeight:
    """A group-quantized weight as a backend computes with it; `Backend.prepare` makes one.

    Attributes:
        form: what the weight is.
        layout: name of the layout, as in `Capabilities.layout`. A backend computes with its own layout only.
        tensors: the weight in that layout. "canonical" is `CANONICAL_LAYOUT`; others are their backend's own affair.
    """

    form: WeightForm
    layout: str
    tensors: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)
