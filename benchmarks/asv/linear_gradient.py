"""The gradient of the group-quantized linear with respect to its input."""

from __future__ import annotations

import torch

import bittensor

from .backends import BACKENDS, Timing, use
from .weights import random_weight

FEATURES = 1024


class InputGrad(Timing):
    params = (BACKENDS, [1, 128])
    param_names = ("backend", "rows")

    def setup(self, backend: str, rows: int) -> None:
        use(backend, "linear_input_grad", 4)
        torch.manual_seed(0)
        weight = random_weight(FEATURES, FEATURES, 128)
        self.backend = bittensor.current_backend()
        self.prepared = self.backend.prepare(weight)
        self.dy = torch.randn(rows, FEATURES)

    def time_input_grad(self, backend: str, rows: int) -> None:
        self.backend.linear_input_grad(self.dy, self.prepared)
