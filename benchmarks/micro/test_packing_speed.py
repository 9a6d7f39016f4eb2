"""Packing and unpacking. ``make bench ARGS="-k pack"``."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import bittensor


@dataclass(frozen=True)
class Packing:
    rows: int
    columns: int
    bits: int

    def __str__(self) -> str:
        return f"b{self.bits}-{self.rows}x{self.columns}"

    @property
    def steps(self) -> int:
        return self.rows * self.columns

    def codes(self) -> torch.Tensor:
        return torch.randint(0, 2**self.bits, (self.rows, self.columns), dtype=torch.uint8)


CASES = [
    Packing(8, 16, 4),
    Packing(64, 65, 4),  # rows that end inside a word
    *(Packing(1024, 1024, bits) for bits in (1, 2, 4, 8)),
    Packing(4096, 4096, 4),
]
pytestmark = [pytest.mark.cases(*CASES), pytest.mark.benchmark(min_rounds=3, max_time=0.2)]


def test_pack(benchmark: BenchmarkFixture, backend: str, case: Packing) -> None:
    benchmark.group = f"pack {case}"
    benchmark.extra_info["bytes"] = case.steps
    benchmark(bittensor.pack_weights, case.codes(), case.bits)


def test_unpack(benchmark: BenchmarkFixture, backend: str, case: Packing) -> None:
    benchmark.group = f"unpack {case}"
    benchmark.extra_info["bytes"] = case.steps
    benchmark(bittensor.unpack_weights, bittensor.pack_weights(case.codes(), case.bits), case.columns, case.bits)
