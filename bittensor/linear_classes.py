"""Layers of other libraries that compute what torch.nn.Linear does. They are known by name: nothing is imported."""

from __future__ import annotations

from typing import Any

import torch

_PLAIN = {"transformers.models.falcon.modeling_falcon.FalconLinear"}
"""Subclasses of torch.nn.Linear that compute the same."""

_TRANSPOSED = {"transformers.pytorch_utils.Conv1D"}
"""Layers of GPT-2 and its kin: the weight is ``[in_features, out_features]``."""


def computes_linear(layer: torch.nn.Module) -> bool:
    """Whether `layer` is a torch.nn.Linear, not one of a subclass that may compute something else, or one of these.

    >>> computes_linear(torch.nn.Linear(2, 3)), computes_linear(torch.nn.Bilinear(2, 2, 3))
    (True, False)
    """
    return type(layer) is torch.nn.Linear or _name(layer) in _PLAIN or has_transposed_weight(layer)


def has_transposed_weight(layer: torch.nn.Module) -> bool:
    """Whether the weight of a layer that computes a linear is the transpose of that of a torch.nn.Linear."""
    return _name(layer) in _TRANSPOSED


def linear_of(layer: Any) -> torch.nn.Linear:
    """A layer that `computes_linear` as a torch.nn.Linear: itself, or a new one with a copy of the weight."""
    if not has_transposed_weight(layer):
        assert isinstance(layer, torch.nn.Linear)
        return layer
    columns, rows = layer.weight.shape
    linear = torch.nn.Linear(1, 1, bias=False)
    linear.in_features, linear.out_features = columns, rows
    linear.weight = torch.nn.Parameter(layer.weight.detach().t().contiguous(), layer.weight.requires_grad)
    linear.bias = layer.bias
    return linear.train(layer.training)


def _name(layer: torch.nn.Module) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"
