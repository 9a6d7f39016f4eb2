"""What the modules cost beside the functions that they call."""

from __future__ import annotations

import torch

import bittensor

from .backends import Timing, use


class SmallestModule(Timing):
    """A layer with almost nothing to compute, by its module and by the function."""

    params = (["cpp", "reference"],)
    param_names = ("backend",)

    def setup(self, backend: str) -> None:
        use(backend, "linear", 4)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(32, 16))
        bittensor.quantize_(model, bittensor.QuantizeConfig(bits=4, group_size=32))
        self.layer, self.x = model[0].eval(), torch.randn(1, 32)
        self.weight = bittensor.quantize(torch.randn(16, 32), 4, 32)

    def time_module(self, backend: str) -> None:
        with torch.inference_mode():
            self.layer(self.x)

    def time_function(self, backend: str) -> None:
        with torch.inference_mode():
            bittensor.linear(self.x, self.weight)

    def time_module_with_gradient(self, backend: str) -> None:
        x = self.x.clone().requires_grad_()
        self.layer(x).sum().backward()
