"""Keys and values of the tokens so far, and attention over those of several sequences at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..fused import FusedOperations, cache_shapes

if TYPE_CHECKING:
    from .llama import LlamaConfig


class KeyValueCache:
    """Keys and values of the tokens so far; room for `capacity` tokens is taken at once.

    Attributes:
        keys, values: of all layers, as `bittensor.fused.cache_shapes` has those of one.
        layers: keys and values of each layer.
        cos, sin: of the angles of the rotary embedding, float32 ``[capacity, head_size]``.
        length: tokens so far.
    """

    def __init__(self, config: LlamaConfig, capacity: int) -> None:
        keys, values = cache_shapes(config.key_value_heads, capacity, config.head_size)
        self.keys, self.values = (
            torch.zeros(config.layers, *sizes, dtype=torch.float32, device="cpu") for sizes in (keys, values)
        )
        self.layers = list(zip(self.keys, self.values, strict=True))
        exponents = torch.arange(0, config.head_size, 2, dtype=torch.float64, device="cpu") / config.head_size
        positions = torch.arange(capacity, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, config.rope_base**-exponents).repeat(1, 2)
        self.cos, self.sin = angles.cos().float(), angles.sin().float()
        self.capacity = capacity
        self.length = 0

    def rotation(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines for the next `count` tokens."""
        positions = slice(self.length, self.length + count)
        return self.cos[positions], self.sin[positions]


class CachedAttention:
    """Attention of new tokens of several sequences, each over a cache of its own.

    Sequences lie one after the other in the rows. Each is attended to alone, so that its result depends neither on the
    others nor on how many they are.

    Args:
        fused: operations of the backend.
        caches: one for each sequence; `KeyValueCache.length` tokens are in it already.
        counts: new tokens of each sequence.
    """

    def __init__(self, fused: FusedOperations, caches: Sequence[KeyValueCache], counts: Sequence[int]) -> None:
        self._attend = fused.attend
        self._counts = list(counts)
        self._sequences = [
            (cache.rotation(count), cache.layers, cache.length) for cache, count in zip(caches, counts, strict=True)
        ]

    def attend(self, projections: torch.Tensor, layer: int, heads: int) -> torch.Tensor:
        """`FusedOperations.attend` for each sequence: rows ``[sum of counts, ...]``, one sequence after the other."""
        if len(self._sequences) == 1:
            rotation, layers, position = self._sequences[0]
            return self._attend(projections, rotation, *layers[layer], position, heads)
        parts = torch.split(projections, self._counts)
        return torch.cat(
            [
                self._attend(part, rotation, *layers[layer], position, heads)
                for part, (rotation, layers, position) in zip(parts, self._sequences, strict=True)
            ]
        )
