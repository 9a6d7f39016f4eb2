"""A linear layer that is trained as it will compute when it is quantized."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..codes import max_code
from ..ops import linear
from ..prepared_weight import WeightForm
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
        weight: float32 ``[out_features, in_features]``; becomes a parameter.
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
        """The layer that starts from `linear`, with a `config`, or a `bittensor.QuantizeConfig` of the `settings`."""
        if config is not None and settings:
            raise TypeError(f"config: expected either a config or its settings, got both: {sorted(settings)}")
        layer = cls(linear.weight, linear.bias, QuantizeConfig(**settings) if config is None else config)
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
        result: torch.Tensor = _FakeQuantizedLinear.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.scales, self.shifts, self.bias, self.form, self.activation_mode
        )
        return result

    def quantized_weight(self) -> QuantizedWeight:
        """The weight as it is rounded now."""
        with torch.no_grad():
            return _Rounding(self.weight, self.scales, self.shifts, self.form).quantized()

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


class _Rounding:
    """The weight on its grid, in steps of the scale: ``value = scale * steps + offset``, ``[N, K]``."""

    def __init__(
        self, weight: torch.Tensor, scales: torch.Tensor, shifts: torch.Tensor | None, form: WeightForm
    ) -> None:
        self.form = form
        highest = max_code(form.bits)
        self.scales = scales.detach().to(form.scale_dtype)
        self.zeros = self.offsets = None
        zero: torch.Tensor | float = 0.0 if form.zero == "float" else float(1 << (form.bits - 1))
        positions = weight.detach().float()
        if form.zero == "float":
            assert shifts is not None
            self.offsets = shifts.detach().to(form.scale_dtype)
            positions = positions - self.by_column(self.offsets)
        elif form.zero == "integer":
            assert shifts is not None
            self.zeros = shifts.detach().round().clamp(0, highest).to(torch.uint8)
            zero = self.by_column(self.zeros)
        scale = self.by_column(self.scales)
        self.scale = scale
        self.positions = positions / torch.where(scale == 0, torch.inf, scale)
        self.codes = (self.positions.round() + zero).clamp(0, highest)
        self.steps = self.codes - zero
        # A NaN is inside, so that it reaches the gradients; as a code it is refused.
        self.clipped = (self.positions < 0 - zero) | (self.positions > highest - zero)

    def by_column(self, of_groups: torch.Tensor) -> torch.Tensor:
        """``[N, G]`` as float32 ``[N, K]``."""
        return of_groups.float().repeat_interleave(self.form.group_size, dim=1)[:, : self.form.shape[1]]

    def by_group(self, of_columns: torch.Tensor) -> torch.Tensor:
        """Sums of ``[N, K]`` over the columns of each group: ``[N, G]``."""
        columns, size = self.form.shape[1], self.form.group_size
        padded = torch.nn.functional.pad(of_columns, (0, self.form.groups * size - columns))
        return padded.view(-1, self.form.groups, size).sum(dim=2)

    def values(self) -> torch.Tensor:
        """The dequantized weight, float32."""
        values = self.steps * self.scale
        return values if self.offsets is None else values + self.by_column(self.offsets)

    def quantized(self) -> QuantizedWeight:
        if not bool(self.positions.isfinite().all()):
            raise ValueError("weight: expected finite values and finite scales, got NaN or infinity; has it diverged?")
        form = self.form
        return QuantizedWeight.from_codes(
            self.codes.to(torch.uint8),
            self.scales,
            self.zeros,
            self.offsets,
            group_size=form.group_size,
            bits=form.bits,
        )


class _FakeQuantizedLinear(torch.autograd.Function):
    """Forward: the packed linear. Backward: docs/numerics.md, section 11."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        scales: torch.Tensor,
        shifts: torch.Tensor | None,
        bias: torch.Tensor | None,
        form: WeightForm,
        activation_mode: str,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, scales, shifts)
        ctx.form, ctx.bias_dtype = form, None if bias is None else bias.dtype
        return linear(x, _Rounding(weight, scales, shifts, form).quantized(), bias, activation_mode)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scales, shifts = ctx.saved_tensors
        form: WeightForm = ctx.form
        rounding = _Rounding(weight, scales, shifts, form)
        rows = dy.reshape(-1, form.shape[0]).float()
        dx = (rows @ rounding.values()).view(x.shape).to(x.dtype) if ctx.needs_input_grad[0] else None
        d_values = rows.T @ x.reshape(-1, form.shape[1]).float()
        clipped = rounding.clipped
        d_scales = rounding.by_group(
            d_values * torch.where(clipped, rounding.steps, rounding.steps - rounding.positions)
        )
        d_shifts = None
        if form.zero == "float":
            d_shifts = rounding.by_group(d_values * clipped)
        elif form.zero == "integer":
            d_shifts = rounding.by_group(d_values * clipped * -rounding.scale)
        highest = (1 << (form.bits - 1)) - 1 if form.zero == "symmetric" else max_code(form.bits)
        balance = 1 / math.sqrt(form.group_size * highest)
        return (
            dx,
            d_values.masked_fill(clipped, 0.0).to(weight.dtype),
            d_scales * balance,
            None if d_shifts is None else d_shifts * balance,
            None if ctx.bias_dtype is None else rows.sum(dim=0).to(ctx.bias_dtype),
            None,
            None,
        )
