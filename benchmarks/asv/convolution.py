"""Convolutions on packed weights."""

from __future__ import annotations

import torch

from bittensor.nn import QuantizedConv2d

from .backends import BACKENDS, Timing, use

CHANNELS, SIZE = 64, 14


class Convolution(Timing):
    params = (BACKENDS, [1, 3])
    param_names = ("backend", "kernel")

    def setup(self, backend: str, kernel: int) -> None:
        use(backend, "linear", 4, steps=(CHANNELS * SIZE * kernel) ** 2)
        torch.manual_seed(0)
        self.layer = QuantizedConv2d.from_conv(
            torch.nn.Conv2d(CHANNELS, CHANNELS, kernel, padding="same"), group_size=64
        )
        self.image = torch.randn(1, CHANNELS, SIZE, SIZE).to(memory_format=torch.channels_last)

    def time_convolution(self, backend: str, kernel: int) -> None:
        with torch.inference_mode():
            self.layer(self.image)
