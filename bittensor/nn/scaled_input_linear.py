"""A linear layer on an input whose channels are scaled first."""

from __future__ import annotations

import torch

from .quantized_linear import QuantizedLinear


class ScaledInputLinear(torch.nn.Module):
    """``linear(x * factors)``: what `bittensor.calibrate` makes of a layer with the method "awq-scale".

    Args:
        linear: on a weight whose columns were divided by `factors`.
        factors: finite floats ``[in_features]``.

    Raises:
        ValueError: factors of another shape, or that are not finite.

    >>> import torch, bittensor
    >>> linear = bittensor.QuantizedLinear.from_linear(torch.nn.Linear(64, 8), group_size=32)
    >>> bittensor.nn.ScaledInputLinear(linear, torch.ones(64))(torch.randn(3, 64)).shape
    torch.Size([3, 8])
    """

    factors: torch.Tensor

    def __init__(self, linear: QuantizedLinear, factors: torch.Tensor) -> None:
        super().__init__()
        if factors.shape != (linear.in_features,) or not bool(factors.isfinite().all()):
            raise ValueError(f"factors: expected finite floats [{linear.in_features}], got {list(factors.shape)}")
        self.linear = linear
        self.register_buffer("factors", factors.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Floats ``[..., in_features]`` to ``[..., out_features]`` of the same dtype."""
        y: torch.Tensor = self.linear(x * self.factors.to(x.dtype))
        return y
