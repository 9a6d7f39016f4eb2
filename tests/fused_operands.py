"""Operands of the operations of transformers: random weights and sequences, and the variants that they run on."""

from __future__ import annotations

import torch

import bittensor

VARIANTS = [f"cpp:{isa}" for isa in bittensor.get_backend("cpp").capabilities.variants]
EPSILON = 1e-5


def weight_of(rows: int, columns: int, **settings: object) -> bittensor.QuantizedWeight:
    generator = torch.Generator().manual_seed(rows * columns)
    return bittensor.quantize(torch.randn(rows, columns, generator=generator), **settings)  # type: ignore[arg-type]


class Sequences:
    """Random queries, keys and values of sequences of different lengths, padded behind them."""

    def __init__(self, heads: int, shared: int, size: int, queries: int, lengths: list[int]) -> None:
        generator = torch.Generator().manual_seed(size)
        batch, keys = len(lengths), max(lengths)
        self.query = torch.randn(batch, queries, heads, size, generator=generator).transpose(1, 2)
        self.key, self.value = torch.randn(2, batch, keys, shared, size, generator=generator).transpose(2, 3)
        self.mask = torch.arange(keys) < torch.tensor(lengths)[:, None]
        self.lengths = lengths

    def run(self, name: str, **changes: object) -> torch.Tensor:
        operands = {"query": self.query, "key": self.key, "value": self.value, "key_mask": self.mask, "scale": 0.3}
        return bittensor.get_backend(name).fused().attend_bidirectional(**(operands | changes))  # type: ignore[arg-type]


SEQUENCES = [
    Sequences(1, 1, 1, 1, [1]),
    Sequences(12, 12, 32, 55, [55, 3, 40, 16]),
    Sequences(6, 2, 24, 9, [17, 0, 16]),
    Sequences(4, 4, 80, 130, [65, 64]),
]
