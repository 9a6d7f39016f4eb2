"""Convolutions on packed weights, beside torch's on floats. ``make bench ARGS="-k conv2d"``."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bittensor.nn import QuantizedConv2d


@dataclass(frozen=True)
class Convolution:
    channels: int
    size: int
    kernel: int
    bits: int

    def __str__(self) -> str:
        return f"b{self.bits}-{self.channels}x{self.size}x{self.size}-k{self.kernel}"

    @property
    def steps(self) -> int:
        return (self.channels * self.size * self.kernel) ** 2

    def layer(self) -> torch.nn.Conv2d:
        return torch.nn.Conv2d(self.channels, self.channels, self.kernel, padding="same")

    def image(self) -> torch.Tensor:
        return torch.randn(1, self.channels, self.size, self.size).to(memory_format=torch.channels_last)


CASES = [Convolution(*shape, bits) for shape in ((64, 56, 3), (256, 14, 3), (256, 14, 1)) for bits in (4, 8)]


@pytest.mark.cases(*CASES)
@pytest.mark.benchmark(min_rounds=3, max_time=0.2)
def test_conv2d(benchmark: BenchmarkFixture, backend: str, case: Convolution) -> None:
    benchmark.group = f"conv2d {case}"
    benchmark.extra_info["multiply-adds"] = case.steps
    layer = QuantizedConv2d.from_conv(case.layer(), bits=case.bits, group_size=64)
    with torch.inference_mode():
        benchmark(layer, case.image())


@pytest.mark.parametrize("case", CASES[::2], ids=str)
@pytest.mark.benchmark(min_rounds=3, max_time=0.2)
def test_conv2d_of_torch(benchmark: BenchmarkFixture, case: Convolution) -> None:
    benchmark.group = f"conv2d {case}, float32 of torch"
    with torch.inference_mode():
        benchmark(case.layer(), case.image())
