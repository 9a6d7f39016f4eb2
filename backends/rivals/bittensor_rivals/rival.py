"""What the rivals have in common: weights stay canonical, and x arrives as rows."""

from __future__ import annotations

from abc import abstractmethod

import torch

from bittensor import PreparedWeight, QuantizedWeight
from bittensor.backend import PROTOCOL_VERSION, Backend


class Rival(Backend):
    """A library's product as a backend."""

    protocol_version = PROTOCOL_VERSION

    def prepare(self, weight: QuantizedWeight) -> PreparedWeight:
        return weight.canonical()

    def restore(self, weight: PreparedWeight) -> QuantizedWeight:
        return QuantizedWeight.from_canonical(weight)

    @torch.no_grad()
    def linear(
        self,
        x: torch.Tensor,
        weight: PreparedWeight,
        bias: torch.Tensor | None,
        activation_mode: str,
        epilogue: str | None,
    ) -> torch.Tensor:
        weight = self.restore(weight).canonical()  # refuses other layouts
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = self.multiply(rows, weight, bias, activation_mode)
        return y.to(x.dtype).reshape(*x.shape[:-1], weight.form.shape[0]).contiguous()

    @abstractmethod
    def multiply(
        self, x: torch.Tensor, weight: PreparedWeight, bias: torch.Tensor | None, activation_mode: str
    ) -> torch.Tensor:
        """The product of contiguous rows ``[M, K]`` with a canonical weight, plus the bias: ``[M, N]`` of any dtype."""
