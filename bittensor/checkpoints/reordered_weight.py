"""Weights whose groups are not runs of columns: GPTQ with act-order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..quantized_weight import QuantizedWeight


@dataclass(frozen=True, eq=False)
class ReorderedWeight:
    """A weight ``[N, K]`` whose columns were sorted, so that those that share a scale stand side by side.

    A layer with it computes ``bittensor.linear(x[..., order], weight)``.

    Attributes:
        weight: `QuantizedWeight` ``[N, K]`` with sorted columns.
        order: int64 ``[K]``; column j of `weight` is column ``order[j]`` of the layer.

    >>> import bittensor
    >>> weight = bittensor.quantize(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), bits=8, group_size=None)
    >>> ReorderedWeight(weight, torch.tensor([2, 0, 1, 3])).dequantize().round()
    tensor([[2., 3., 1., 4.]])
    """

    weight: QuantizedWeight
    order: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): outputs, inputs."""
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the weight and the order."""
        return self.weight.nbytes + self.order.numel() * self.order.itemsize

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The values in the order of the layer's columns: ``[N, K]`` of `dtype`."""
        return self.weight.dequantize(dtype)[:, self.order.argsort()]


def order_of_groups(g_idx: torch.Tensor, groups: int, group_size: int) -> torch.Tensor | None:
    """The order that sorts columns by their group; None if they are sorted already.

    Args:
        g_idx: integers ``[K]``, the group of each column.
        groups: number of groups, G.
        group_size: columns of a group, but for the last one, which may be shorter.

    Raises:
        ValueError: a group has another number of columns.

    >>> order_of_groups(torch.tensor([1, 0, 0, 1]), groups=2, group_size=2)
    tensor([1, 2, 0, 3])
    """
    columns = len(g_idx)
    low, high = (int(end) for end in g_idx.aminmax())
    if low < 0 or high >= groups:
        raise ValueError(f"g_idx: expected groups 0..{groups - 1}, got {low}..{high}")
    ordered, order = g_idx.to(torch.int64).sort(stable=True)
    if not torch.equal(ordered, torch.arange(columns, device=order.device) // group_size):
        counts = g_idx.to(torch.int64).bincount(minlength=groups).tolist()
        wrong = next(group for group, count in enumerate(counts) if count != _size_of(group, columns, group_size))
        raise ValueError(
            f"g_idx: expected {_size_of(wrong, columns, group_size)} columns in group {wrong}, got {counts[wrong]}"
        )
    return None if torch.equal(order, torch.arange(columns, device=order.device)) else order


def _size_of(group: int, columns: int, group_size: int) -> int:
    return max(0, min(group_size, columns - group * group_size))
