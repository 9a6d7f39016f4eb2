"""Layers on weights as checkpoints hold them: packed, packed with ordered columns, or floats."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..checkpoints import ReorderedWeight, Stored
from ..nn import QuantizedEmbedding, QuantizedLinear
from ..quantized_weight import QuantizedWeight


def linear_layer(stored: Stored, activation_mode: str) -> torch.nn.Module:
    """A layer ``[..., K]`` to ``[..., N]`` without a bias."""
    if isinstance(stored, QuantizedWeight):
        return QuantizedLinear(stored, activation_mode=activation_mode)
    if isinstance(stored, ReorderedWeight):
        return ReorderedLinear(stored, activation_mode)
    return FloatLinear(stored)


def embedding_layer(stored: Stored) -> torch.nn.Module:
    """Rows of a table, packed or not, as float32. A head of the same packed weight shares its memory."""
    if isinstance(stored, QuantizedWeight):
        return QuantizedEmbedding(stored)
    if isinstance(stored, ReorderedWeight):
        return ReorderedEmbedding(stored)
    return FloatEmbedding(stored)


def fused_layer(parts: Sequence[Stored], activation_mode: str) -> torch.nn.Module:
    """One layer for several on the same input: their outputs side by side, in one product where their forms agree."""
    weights = [part for part in parts if isinstance(part, QuantizedWeight)]
    if len(weights) == len(parts) and len({_kind(weight) for weight in weights}) == 1:
        return linear_layer(stack_rows(weights), activation_mode)
    if all(isinstance(part, torch.Tensor) for part in parts):
        return FloatLinear(torch.cat([part.float() for part in parts if isinstance(part, torch.Tensor)]))
    return SideBySide([linear_layer(part, activation_mode) for part in parts])


def stack_rows(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Weights of one form, but for their number of rows, one below the other."""
    parts = [weight.tensors() for weight in weights]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    like, rows = weights[0], sum(weight.shape[0] for weight in weights)
    return QuantizedWeight(**tensors, shape=(rows, like.shape[1]), group_size=like.group_size, bits=like.bits)


class FloatLinear(torch.nn.Module):
    """A layer on a float weight ``[N, K]``, computed in float32."""

    weight: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight)


class ReorderedLinear(torch.nn.Module):
    """A layer on a weight whose columns are ordered: it takes its input in that order."""

    order: torch.Tensor

    def __init__(self, stored: ReorderedWeight, activation_mode: str) -> None:
        super().__init__()
        self.linear = QuantizedLinear(stored.weight, activation_mode=activation_mode)
        self.register_buffer("order", stored.order)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x.index_select(-1, self.order))
        return y


class SideBySide(torch.nn.Module):
    """Several layers on one input, their outputs concatenated."""

    def __init__(self, layers: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


class FloatEmbedding(torch.nn.Module):
    """Rows of a table of floats, as float32."""

    table: torch.Tensor

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table[tokens].float()


class ReorderedEmbedding(torch.nn.Module):
    """Rows of a table whose columns are ordered, in the order of the values."""

    places: torch.Tensor

    def __init__(self, stored: ReorderedWeight) -> None:
        super().__init__()
        self.embedding = QuantizedEmbedding(stored.weight)
        self.register_buffer("places", stored.order.argsort())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.embedding(tokens).index_select(-1, self.places)
        return rows


def _kind(weight: QuantizedWeight) -> tuple[object, ...]:
    form = weight.form
    return form.shape[1], form.bits, form.group_size, form.zero, form.scale_dtype
