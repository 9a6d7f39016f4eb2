"""The integer product. ``make bench ARGS="-k 'matmul and m8 and avx2'"``."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import bittensor


@dataclass(frozen=True)
class Product:
    m: int
    n: int
    k: int
    bits: int = 4

    def __str__(self) -> str:
        return f"b{self.bits}-m{self.m}-n{self.n}-k{self.k}"

    @property
    def steps(self) -> int:
        return self.m * self.n * self.k

    def codes(self, rows: int, columns: int) -> torch.Tensor:
        return torch.randint(0, 2**self.bits, (rows, columns), dtype=torch.uint8)


CASES = [
    Product(1, 8, 16),
    *(Product(m, 65, 100) for m in (1, 17)),  # tails everywhere
    *(Product(m, 384, 384) for m in (1, 8, 128)),
    *(Product(m, 4096, 4096) for m in (1, 8, 128)),
    *(Product(8, 1024, 1024, bits) for bits in (1, 2, 4, 8)),
]
pytestmark = [pytest.mark.cases(*CASES), pytest.mark.benchmark(min_rounds=3, max_time=0.2)]


def test_packed_matmul(benchmark: BenchmarkFixture, backend: str, case: Product) -> None:
    benchmark.group = f"packed_matmul {case}"
    benchmark.extra_info["operations"] = 2 * case.steps
    weight = bittensor.pack_weights(case.codes(case.n, case.k), case.bits)
    bias = torch.zeros(case.n, dtype=torch.uint8)
    benchmark(bittensor.packed_matmul, case.codes(case.m, case.k), weight, bias, bits=case.bits)
