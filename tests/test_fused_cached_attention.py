"""`attend`, attention to a cache: every kernel path against its composition, and against one another."""

from __future__ import annotations

import pytest
import torch
from fused_operands import VARIANTS

import bittensor
from bittensor.fused import ComposedOperations, cache_shapes


class Attending:
    """Queries, keys and values of random tokens, and an empty cache for each attempt."""

    def __init__(self, heads: int, shared: int, size: int, tokens: int, capacity: int) -> None:
        generator = torch.Generator().manual_seed(tokens)
        self.heads, self.shared, self.size, self.capacity = heads, shared, size, capacity
        self.projections = torch.randn(tokens, (heads + 2 * shared) * size, generator=generator)
        angles = torch.rand(tokens, size // 2, generator=generator).repeat(1, 2) * 6
        self.cos, self.sin = angles.cos(), angles.sin()

    def run(self, fused: bittensor.fused.FusedOperations, pieces: list[int]) -> list[torch.Tensor]:
        """The result for all tokens, which arrive in pieces, and the cache."""
        keys, values = (torch.zeros(shape) for shape in cache_shapes(self.shared, self.capacity, self.size))
        outs, start = [], 0
        for count in pieces:
            at = slice(start, start + count)
            rotation = (self.cos[at], self.sin[at])
            outs.append(fused.attend(self.projections[at], rotation, keys, values, start, self.heads))
            start += count
        return [torch.cat(outs), keys, values]


CASES = [
    Attending(1, 1, 2, 1, 1),
    Attending(9, 3, 64, 70, 80),
    Attending(4, 4, 24, 130, 130),
    Attending(6, 2, 80, 33, 64),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.heads}x{case.size}")
def test_attention_is_near_its_composition(case: Attending) -> None:
    tokens = len(case.projections)
    expected = case.run(ComposedOperations(bittensor.get_backend("reference")), [tokens])
    for actual, wanted in zip(case.run(bittensor.get_backend("cpp").fused(), [tokens]), expected, strict=True):
        assert torch.allclose(actual, wanted, atol=2e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.heads}x{case.size}")
def test_attention_has_the_same_bits_everywhere(case: Attending, one_thread: None) -> None:
    tokens = len(case.projections)
    expected = case.run(bittensor.get_backend("cpp:scalar").fused(), [tokens])
    for variant in VARIANTS:
        fused = bittensor.get_backend(variant).fused()
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for pieces in ([tokens], [1] * tokens, [tokens // 2, tokens - tokens // 2]):
                if 0 in pieces:
                    continue
                for actual, wanted in zip(case.run(fused, pieces), expected, strict=True):
                    assert torch.equal(actual, wanted), (variant, threads, pieces)


def test_attention_counts_its_kernels() -> None:
    backend = bittensor.get_backend(VARIANTS[-1])
    before = backend.kernel_calls()
    CASES[0].run(backend.fused(), [1])
    ran = {name for name, calls in backend.kernel_calls().items() if calls > before[name]}
    isa = backend.name.partition(":")[2]
    assert ran == {f"panel_product_{isa}", f"softmax_row_{isa}"}


def attend(**changes: object) -> torch.Tensor:
    keys, values = (torch.zeros(shape) for shape in cache_shapes(2, 10, 8))
    angles = torch.zeros(3, 8)
    arguments: dict[str, object] = {
        "projections": torch.zeros(3, 64),
        "cos": angles,
        "sin": angles,
        "keys": keys,
        "values": values,
        "position": 0,
        "heads": 4,
        **changes,
    }
    return torch.ops.bittensor_cpp.attend.default(*arguments.values())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projections": torch.zeros(3, 63)}, "projections: expected float32"),
        ({"projections": torch.zeros(0, 64)}, "at least one token"),
        ({"projections": torch.zeros(3, 64, dtype=torch.float64)}, "projections: expected float32"),
        ({"cos": torch.zeros(2, 8)}, "cos, sin"),
        ({"sin": torch.zeros(3, 8, dtype=torch.float16)}, "cos, sin"),
        ({"keys": torch.zeros(2, 1, 8, 32)}, "keys, values"),
        ({"keys": torch.zeros(2, 2, 8, 64)}, "keys, values"),
        ({"keys": torch.zeros(2, 1, 64, 8).transpose(2, 3)}, "keys: expected contiguous"),
        ({"values": torch.zeros(2, 10, 8)}, "keys, values"),
        ({"values": torch.zeros(3, 10, 16)}, "keys, values"),
        ({"position": 8}, "position: 3 tokens from 8 on"),
        ({"position": -1}, "position"),
        ({"position": 2**63 - 1}, "position"),
        ({"heads": 3}, "heads: expected a multiple"),
        ({"heads": 0}, "heads"),
        ({"heads": 2**62}, "heads"),
        ({"cos": torch.zeros(3, 8, device="meta")}, "cos: expected a tensor with memory, got one on meta"),
        ({"values": torch.zeros(2, 10, 16, device="meta")}, "values: expected a tensor with memory"),
    ],
)
def test_attention_refuses(changes: dict[str, object], message: str) -> None:
    assert attend().shape == (3, 32)
    with pytest.raises((RuntimeError, ValueError), match=message):
        attend(**changes)
