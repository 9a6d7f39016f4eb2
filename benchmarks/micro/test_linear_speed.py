"""The group-quantized linear. ``make bench ARGS="-k 'linear and int8 and m8 and avx2'"``."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import bittensor
from benchmarks.asv.weights import random_weight


@dataclass(frozen=True)
class Linear:
    mode: str
    m: int
    n: int
    k: int
    bits: int = 4
    group_size: int = 128

    def __str__(self) -> str:
        return f"{self.mode}-b{self.bits}-g{self.group_size}-m{self.m}-n{self.n}-k{self.k}"

    @property
    def steps(self) -> int:
        return self.m * self.n * self.k


CASES = [
    Linear(mode, *rest)
    for mode in ("int8", "float")
    for rest in (
        *((m, 384, 384) for m in (1, 8, 128)),
        *((m, 4096, 4096) for m in (1, 8)),
        (8, 1024, 1024, 2),
        (8, 1024, 1024, 8),
        (8, 1024, 1024, 4, 32),
    )
]
pytestmark = pytest.mark.benchmark(min_rounds=3, max_time=0.2)


@pytest.mark.cases(*CASES)
def test_linear(benchmark: BenchmarkFixture, backend: str, case: Linear) -> None:
    benchmark.group = f"linear {case}"
    benchmark.extra_info["operations"] = 2 * case.steps
    weight = random_weight(case.n, case.k, case.group_size, case.bits)
    x = torch.randn(case.m, case.k)
    bittensor.linear(x, weight, activation_mode=case.mode)  # brings the weight into the backend's layout
    benchmark(bittensor.linear, x, weight, activation_mode=case.mode)
