"""Convolutions on packed weights, beside torch's on floats. ``make bench ARGS="-k conv2d"``."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bittensor.nn import QuantizedConv2d


@dataclass(frozen=True)
class Convolution:
    inputs: int
    outputs: int
    size: int
    kernel: int
    stride: int = 1
    groups: int = 1
    bits: int = 4

    def __str__(self) -> str:
        shape = f"{self.inputs}to{self.outputs}-{self.size}x{self.size}-k{self.kernel}"
        return f"b{self.bits}-{shape}-s{self.stride}-g{self.groups}"

    @property
    def steps(self) -> int:
        columns = self.kernel**2 * self.inputs // self.groups
        return self.outputs * columns * -((-self.size // self.stride) ** 2)

    def layer(self) -> torch.nn.Conv2d:
        padding = self.kernel // 2
        return torch.nn.Conv2d(self.inputs, self.outputs, self.kernel, self.stride, padding, groups=self.groups)

    def image(self) -> torch.Tensor:
        return torch.randn(1, self.inputs, self.size, self.size).to(memory_format=torch.channels_last)


CASES = [
    Convolution(64, 64, 56, 3),
    Convolution(64, 64, 56, 3, bits=8),
    Convolution(64, 256, 56, 1),
    Convolution(256, 256, 14, 3),
    Convolution(256, 256, 14, 1),
    Convolution(3, 64, 224, 7, stride=2),  # a first layer
    Convolution(3, 32, 224, 3, stride=2),
    Convolution(128, 128, 28, 3, groups=32),
    Convolution(144, 144, 56, 3, groups=144),  # depthwise
]


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.cases(*CASES)
@pytest.mark.benchmark(min_rounds=3, max_time=0.2)
def test_conv2d(benchmark: BenchmarkFixture, backend: str, case: Convolution, mode: str) -> None:
    benchmark.group = f"conv2d {case}"
    benchmark.extra_info["multiply-adds"] = case.steps
    layer = QuantizedConv2d.from_conv(case.layer(), bits=case.bits, group_size=None, activation_mode=mode)
    with torch.inference_mode():
        benchmark(layer, case.image())


@pytest.mark.parametrize("case", [case for case in CASES if case.bits == 4], ids=str)
@pytest.mark.benchmark(min_rounds=3, max_time=0.2)
def test_conv2d_of_torch(benchmark: BenchmarkFixture, case: Convolution) -> None:
    benchmark.group = f"conv2d {case}"
    benchmark.extra_info["multiply-adds"] = case.steps
    with torch.inference_mode():
        benchmark(case.layer(), case.image())
