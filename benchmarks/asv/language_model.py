"""What a transformer computes around its linears: fused with them, between two of them, and attention."""

from __future__ import annotations

from typing import Any

import torch
from asv_runner.benchmarks.mark import SkipNotImplemented

import bittensor

from .backends import FAST_BACKENDS, Timing, use
from .weights import random_weight

FEATURES = 1024
HEADS, SHARED_HEADS, HEAD_SIZE = 9, 3, 64


def fused_operations(backend: str) -> Any:
    """Those of a backend, which is then in use; skips a commit that has none."""
    use(backend, "linear", 4)
    torch.manual_seed(0)
    chosen = bittensor.current_backend()
    if not hasattr(chosen, "fused"):
        raise SkipNotImplemented("this commit has no operations of language models")
    return chosen.fused()


class FusedLinear(Timing):
    params = (FAST_BACKENDS, ["norm", "gated", "residual"], [1, 128])
    param_names = ("backend", "with", "rows")

    def setup(self, backend: str, beside: str, rows: int) -> None:
        self.fused = fused_operations(backend)
        self.weight = bittensor.current_backend().prepare(random_weight(FEATURES, FEATURES, 32))
        self.x = torch.randn(rows, FEATURES * (2 if beside == "gated" else 1))
        self.beside = {
            "norm": {"norm": (torch.ones(FEATURES), 1e-5)},
            "gated": {"gated": True},
            "residual": {"residual": torch.randn(rows, FEATURES)},
        }[beside]

    def time_linear(self, backend: str, beside: str, rows: int) -> None:
        self.fused.linear(self.x, self.weight, "int8", **self.beside)


class FeedForward(Timing):
    """The feed-forward network of an encoder of width 384: for a batch of sentences, and for one of few words."""

    params = (FAST_BACKENDS, [1760, 8])
    param_names = ("backend", "rows")

    def setup(self, backend: str, rows: int) -> None:
        self.fused = fused_operations(backend)
        if not hasattr(self.fused, "feed_forward"):
            raise SkipNotImplemented("this commit has no feed-forward networks")
        prepare = bittensor.current_backend().prepare
        self.up, self.down = prepare(random_weight(1536, 384, 32)), prepare(random_weight(384, 1536, 32))
        self.x, self.up_bias, self.down_bias = torch.randn(rows, 384), torch.randn(1536), torch.randn(384)

    def time_feed_forward(self, backend: str, rows: int) -> None:
        self.fused.feed_forward(self.x, self.up, self.up_bias, "gelu", self.down, self.down_bias, "int8")


class Attention(Timing):
    """New tokens after those that the cache holds: a step of generation, and a prompt."""

    params = (FAST_BACKENDS, ["1 after 512", "128 after 0"])
    param_names = ("backend", "tokens")

    def setup(self, backend: str, tokens: str) -> None:
        self.fused = fused_operations(backend)
        from bittensor.fused import cache_shapes

        count, self.position = map(int, tokens.split(" after "))
        shapes = cache_shapes(SHARED_HEADS, self.position + count, HEAD_SIZE)
        self.keys, self.values = (torch.zeros(shape) for shape in shapes)
        self.projections = torch.randn(count, (HEADS + 2 * SHARED_HEADS) * HEAD_SIZE)
        angles = torch.rand(count, HEAD_SIZE // 2).repeat(1, 2)
        self.rotation = (angles.cos(), angles.sin())

    def time_attend(self, backend: str, tokens: str) -> None:
        self.fused.attend(self.projections, self.rotation, self.keys, self.values, self.position, HEADS)


class BidirectionalAttention(Timing):
    """A batch of sentences of an encoder, padded to the longest; and one long text."""

    params = (FAST_BACKENDS, ["32 of 55", "1 of 512"])
    param_names = ("backend", "sequences")

    def setup(self, backend: str, sequences: str) -> None:
        self.fused = fused_operations(backend)
        if not hasattr(self.fused, "attend_bidirectional"):
            raise SkipNotImplemented("this commit has no attention of whole sequences")
        count, tokens = map(int, sequences.split(" of "))
        vectors = torch.randn(3, count, tokens, 12, 32).transpose(2, 3)
        self.query, self.key, self.value = vectors
        lengths = tokens - torch.arange(count) * tokens // (2 * count)
        self.mask = torch.arange(tokens) < lengths[:, None]

    def time_attend(self, backend: str, sequences: str) -> None:
        self.fused.attend_bidirectional(self.query, self.key, self.value, self.mask, 0.2)
