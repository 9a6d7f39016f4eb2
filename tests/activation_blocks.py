"""Layers with an activation after them, what `fuse_activations_` looks for, and what is compared after it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from bittensor import QuantizeConfig, QuantizedLinear

CONFIG = QuantizeConfig(bits=4, group_size=16, zero="float")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = normal(5, 32)


def packed(config: QuantizeConfig = CONFIG, outputs: int = 32) -> QuantizedLinear:
    layer = nn.Linear(32, outputs)
    with torch.no_grad():
        layer.weight.copy_(normal(outputs, 32, seed=1) / 5)
        layer.bias.copy_(normal(outputs, seed=2))
    return QuantizedLinear.from_linear(layer, config)


def assert_close(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert bool((result - expected).norm() <= 1e-5 * expected.norm())


def epilogues(model: nn.Module) -> dict[str, str]:
    layers = {name: each for name, each in model.named_modules() if isinstance(each, QuantizedLinear)}
    return {name: each.epilogue for name, each in layers.items() if each.epilogue is not None}


class Block(nn.Module):
    """A layer and an activation, which the forwards of its subclasses use."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.linear = packed()
        self.activation = nn.GELU() if activation is None else activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(x))


class Functional(nn.Module):
    """An activation of another library: it calls a function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)
