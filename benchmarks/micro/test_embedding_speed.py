"""Rows of a group-quantized weight, beside torch's rows of floats. ``make bench ARGS="-k embedding"``."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import bittensor
from benchmarks.asv.weights import random_weight


@dataclass(frozen=True)
class Rows:
    count: int
    columns: int
    bits: int
    group_size: int
    table: int = 8192

    def __str__(self) -> str:
        return f"b{self.bits}-g{self.group_size}-{self.count}of{self.table}x{self.columns}"

    @property
    def steps(self) -> int:
        return self.table * self.columns  # what the reference dequantizes


CASES = [Rows(count, 1024, bits, 64) for count in (1, 128) for bits in (2, 4, 8)]


@pytest.mark.cases(*CASES)
@pytest.mark.benchmark(min_rounds=3, max_time=0.2)
def test_embedding(benchmark: BenchmarkFixture, backend: str, case: Rows) -> None:
    benchmark.group = f"embedding {case}"
    weight = random_weight(case.table, case.columns, case.group_size, case.bits)
    indices = torch.randint(case.table, (case.count,))
    chosen = bittensor.current_backend()
    prepared = chosen.prepare(weight)
    benchmark(chosen.embedding, indices, prepared, torch.float32)


@pytest.mark.parametrize("count", [1, 128])
def test_embedding_of_torch(benchmark: BenchmarkFixture, count: int) -> None:
    benchmark.group = f"embedding {count} of 8192x1024 floats"
    benchmark(torch.nn.functional.embedding, torch.randint(8192, (count,)), torch.randn(8192, 1024))
