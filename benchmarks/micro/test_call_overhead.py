"""What a call costs where there is almost nothing to compute, with torch's own layer for comparison."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn.functional import linear

import bittensor

M, N, K = 1, 8, 16
pytestmark = pytest.mark.benchmark(group=f"call of {M}x{N}x{K}", min_rounds=3, max_time=0.2)


@pytest.fixture
def codes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input, weight and bias."""
    torch.manual_seed(0)
    shapes = ((M, K), (N, K), (N,))
    x, weight, bias = (torch.randint(0, 16, shape, dtype=torch.uint8) for shape in shapes)
    return x, weight, bias


def test_call_of_packed_matmul(
    benchmark: BenchmarkFixture, codes: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    x, weight, bias = codes
    benchmark(bittensor.packed_matmul, x, bittensor.pack_weights(weight), bias)


def test_call_of_module(benchmark: BenchmarkFixture, codes: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x, weight, bias = codes
    benchmark(bittensor.PackedLinear(weight, bias), x)


def test_call_of_torch_linear(
    benchmark: BenchmarkFixture, codes: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    x, weight, bias = codes
    benchmark(linear, x.float(), weight.float(), bias.float())
