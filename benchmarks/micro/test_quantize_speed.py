"""Quantizing a float weight; it is computed by torch, whatever the backend. ``make bench ARGS="-k quantize"``."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import bittensor

FEATURES = 256


@pytest.mark.benchmark(min_rounds=3, max_time=0.2)
@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
@pytest.mark.parametrize("method", ["rtn", "mse", "hqq"])
def test_quantize(benchmark: BenchmarkFixture, method: str, zero: str) -> None:
    benchmark.group = f"quantize {zero} {FEATURES}x{FEATURES}"
    torch.manual_seed(0)
    weight = torch.randn(FEATURES, FEATURES)
    benchmark(bittensor.quantize, weight, 4, 128, zero=zero, method=method)
