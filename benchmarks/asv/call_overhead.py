"""What a call costs where there is almost nothing to compute."""

from __future__ import annotations

import torch

import bittensor

from .backends import BACKENDS, Timing, use


class SmallestCall(Timing):
    params = (BACKENDS,)
    param_names = ("backend",)

    def setup(self, backend: str) -> None:
        use(backend, "packed_matmul", 4)
        torch.manual_seed(0)
        shapes = ((1, 16), (8, 16), (8,))
        self.x, codes, self.bias = (torch.randint(0, 16, shape, dtype=torch.uint8) for shape in shapes)
        self.weight = bittensor.pack_weights(codes)
        self.module = bittensor.PackedLinear(codes, self.bias)

    def time_function(self, backend: str) -> None:
        bittensor.packed_matmul(self.x, self.weight, self.bias)

    def time_module(self, backend: str) -> None:
        self.module(self.x)
