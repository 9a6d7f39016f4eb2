"""A linear layer that is trained as it will compute when it is quantized."""

from __future__ import annotations

from typing import Any

import torch

from ..fake_quantization import Rounding, fake_quantized_linear
from ..quantize_config import QuantizeConfig
from ..quantized_weight import QuantizedWeight
from .quantized_linear import QuantizedLinear


class FakeQuantizedLinear(torch.nn.Module):
    """A linear layer for quantization-aware training: float parameters, the outputs of its packed layer.

    Each call rounds the weight to codes and computes with them, by `bittensor.linear`, exactly what `to_quantized` will
    compute: the same bits. Gradients pass straight through the rounding, and reach the scales as in learned step size
    quantization (S. Esser et al., "Learned Step Size Quantization", 2020) and the offsets as in LSQ+ (Y. Bhalgat et
    al., 2020); docs/numerics.md, section 11.

    Args:
        weight: float32, float16 or bfloat16 ``[out_features, in_features]``; becomes a parameter.
        bias: ``[out_features]`` or None; becomes a parameter.
        config: bits, group size, kind of zero and scale dtype; the scales start as `bittensor.quantize` finds them.

    Attributes:
        weight, bias: parameters.
        scales: float32 parameter ``[out_features, groups]``; rounded to the scale dtype of the configuration.
        shifts: float32 parameter ``[out_features, groups]``: zero points, which are rounded to codes, for
            zero="integer", or offsets for zero="float"; None for "symmetric".

    Raises:
        TypeError, ValueError: as `bittensor.quantize`.

    >>> import torch, bittensor
    >>> layer = bittensor.nn.FakeQuantizedLinear.from_linear(torch.nn.Linear(64, 32), group_size=32)
    >>> x = torch.randn(3, 64)
    >>> layer(x).sum().backward()
    >>> layer.scales.grad.shape
    torch.Size([32, 2])
    >>> torch.equal(layer.to_quantized()(x), layer(x))
    True
    """

    bias: torch.nn.Parameter | None
    shifts: torch.nn.Parameter | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, config: QuantizeConfig) -> None:
        super().__init__()
        start = config.quantize(weight)
        self.form = start.form
        self.activation_mode = config.activation_mode
        self.weight = torch.nn.Parameter(weight.detach().clone())
        self.register_parameter("bias", None if bias is None else torch.nn.Parameter(bias.detach().clone()))
        self.scales = torch.nn.Parameter(start.scales.to(torch.float32, copy=True))
        shifts = start.zeros if start.zero == "integer" else start.offsets
        self.register_parameter("shifts", None if shifts is None else torch.nn.Parameter(shifts.float()))

    @classmethod
    def from_linear(
        cls, linear: torch.nn.Linear, config: QuantizeConfig | None = None, **settings: Any
    ) -> FakeQuantizedLinear:
        """The layer that starts from `linear`, with a `config`, or a `bittensor.QuantizeConfig` of the `settings`.

        What is frozen stays frozen: the scales and shifts with the weight, the bias by itself.

        Raises:
            TypeError, ValueError: as `bittensor.quantize`, or both a config and settings.
        """
        if config is not None and settings:
            raise TypeError(f"config: expected either a config or its settings, got both: {sorted(settings)}")
        layer = cls(linear.weight, linear.bias, QuantizeConfig(**settings) if config is None else config)
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_((linear.bias if name == "bias" else linear.weight).requires_grad)
        return layer.train(linear.training)

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.form.shape[1]

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.form.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the weight when it is packed."""
        return self.form.nbytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Floats ``[..., in_features]`` to ``[..., out_features]`` of the same dtype."""
        return fake_quantized_linear(
            x, self.weight, self.scales, self.shifts, self.bias, self.form, self.activation_mode
        )

    def quantized_weight(self) -> QuantizedWeight:
        """The weight as it is rounded now."""
        with torch.no_grad():
            return Rounding(self.weight, self.scales, self.shifts, self.form).quantized()

    def to_quantized(self) -> QuantizedLinear:
        """The packed layer, whose outputs are identical."""
        bias = None if self.bias is None else self.bias.detach().clone()
        layer = QuantizedLinear(self.quantized_weight(), bias, activation_mode=self.activation_mode)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        form = self.form
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={form.bits}, "
            f"group_size={form.group_size}, zero={form.zero!r}, bias={self.bias is not None}, "
            f"activation_mode={self.activation_mode!r}"
        )
