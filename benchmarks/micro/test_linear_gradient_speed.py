"""The gradient of the group-quantized linear with respect to its input. ``make bench ARGS="-k input_grad"``."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import bittensor
from benchmarks.asv.weights import random_weight


@dataclass(frozen=True)
class InputGrad:
    rows: int
    features: int
    bits: int
    group_size: int

    def __str__(self) -> str:
        return f"b{self.bits}-g{self.group_size}-{self.rows}x{self.features}x{self.features}"

    @property
    def steps(self) -> int:
        return self.rows * self.features * self.features


CASES = [InputGrad(rows, 1024, bits, 128) for rows in (1, 8, 128) for bits in (2, 4, 8)]
pytestmark = [pytest.mark.cases(*CASES), pytest.mark.benchmark(min_rounds=3, max_time=0.2)]


def test_input_grad(benchmark: BenchmarkFixture, backend: str, case: InputGrad) -> None:
    benchmark.group = f"input_grad {case}"
    benchmark.extra_info["multiply-adds"] = case.steps
    weight = random_weight(case.features, case.features, case.group_size, case.bits)
    chosen = bittensor.current_backend()
    prepared = chosen.prepare(weight)
    benchmark(chosen.linear_input_grad, torch.randn(case.rows, case.features), prepared)
