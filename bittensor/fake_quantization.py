"""The linear of quantization-aware training (docs/numerics.md, section 11) as an operator with its gradients.

The operator rounds the weight and multiplies by it in one opaque step, and a second one has its gradients, so that
programs are traced through both and train with the bits of eager.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd import forward_ad

from .codes import max_code
from .linear_checks import refuse_tangents
from .operators import autocast_linear, refuse_meta
from .ops import linear
from .prepared_weight import WeightForm
from .quantized_weight import QuantizedWeight
from .registry import current_backend, name_of, use_backend


class Rounding:
    """The weight on its grid, in steps of the scale: ``value = scale * steps + offset``, ``[N, K]``."""

    def __init__(
        self, weight: torch.Tensor, scales: torch.Tensor, shifts: torch.Tensor | None, form: WeightForm
    ) -> None:
        self.form = form
        highest = max_code(form.bits)
        self.scales = scales.detach().to(form.scale_dtype)
        self.zeros = self.offsets = None
        self.shifts_are_finite = True
        zero: torch.Tensor | float = 0.0 if form.zero == "float" else float(1 << (form.bits - 1))
        positions = weight.detach().float()
        if form.zero == "float":
            assert shifts is not None
            self.offsets = shifts.detach().to(form.scale_dtype)
            positions = positions - self.by_column(self.offsets)
        elif form.zero == "integer":
            assert shifts is not None
            self.shifts_are_finite = bool(shifts.isfinite().all())
            self.zeros = shifts.detach().nan_to_num(0).round().clamp(0, highest).to(torch.uint8)
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
        if not (bool(self.positions.isfinite().all()) and self.shifts_are_finite):
            raise ValueError("weight: expected finite values, scales and shifts, got NaN or infinity; has it diverged?")
        form = self.form
        return QuantizedWeight.from_codes(
            self.codes.to(torch.uint8),
            self.scales,
            self.zeros,
            self.offsets,
            group_size=form.group_size,
            bits=form.bits,
        )


def fake_quantized_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    shifts: torch.Tensor | None,
    bias: torch.Tensor | None,
    form: WeightForm,
    activation_mode: str,
) -> torch.Tensor:
    """`bittensor.linear` of the rounded weight, with gradients for every tensor.

    Args:
        x: float32, float16 or bfloat16 ``[..., K]``.
        weight: float32, float16 or bfloat16 ``[N, K]``.
        scales, shifts: float32 ``[N, G]``; shifts are zero points, or offsets, or None, as `form` says.
        bias: ``[N]`` or None.
        form: what the rounded weight is.
        activation_mode: "int8" or "float".

    Returns:
        ``[..., N]`` of the dtype of `x`.

    Raises:
        TypeError, ValueError: as `bittensor.linear`, or the weight or a scale is not finite, or lies on meta.
        NotImplementedError: a tensor has a tangent: there is no derivative in forward mode.
    """
    if forward_ad._current_level >= 0:
        refuse_tangents(x, weight, scales, shifts, bias)
    result: torch.Tensor = torch.ops.bittensor.fake_quantized_linear.default(
        x,
        weight,
        scales,
        shifts,
        bias,
        form.bits,
        form.group_size,
        form.zero,
        form.scale_dtype,
        activation_mode,
        name_of(current_backend()),
    )
    return result


def _compute(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    shifts: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    group_size: int,
    zero: str,
    scale_dtype: torch.dtype,
    activation_mode: str,
    backend: str,
) -> torch.Tensor:
    form = _form(weight, bits, group_size, zero, scale_dtype)
    with use_backend(backend):
        return linear(x, Rounding(weight, scales, shifts, form).quantized(), bias, activation_mode)


def _form(weight: torch.Tensor, bits: int, group_size: int, zero: str, scale_dtype: torch.dtype) -> WeightForm:
    rows, columns = weight.shape
    return WeightForm((rows, columns), bits, group_size, zero, scale_dtype)


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    shifts: torch.Tensor | None,
    bias: torch.Tensor | None,
    *_: Any,
) -> torch.Tensor:
    refuse_meta(x=x, weight=weight, scales=scales, shifts=shifts, bias=bias)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, scales, shifts, bias, *ctx.form, _, _ = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, scales, shifts)


@torch.autograd.function.once_differentiable
def _backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight, scales, shifts = ctx.saved_tensors
    dx, d_weight, d_scales, d_shifts, d_bias = torch.ops.bittensor.fake_quantized_linear_grads.default(
        dy, x, weight, scales, shifts, *ctx.form
    )
    return (
        dx if ctx.needs_input_grad[0] else None,
        d_weight,
        d_scales,
        None if shifts is None else d_shifts,
        None if ctx.bias_dtype is None else d_bias.to(ctx.bias_dtype),
        *[None] * 6,
    )


def _compute_grads(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    shifts: torch.Tensor | None,
    bits: int,
    group_size: int,
    zero: str,
    scale_dtype: torch.dtype,
) -> tuple[torch.Tensor, ...]:
    form = _form(weight, bits, group_size, zero, scale_dtype)
    rounding = Rounding(weight, scales, shifts, form)
    rows = dy.reshape(-1, form.shape[0]).float()
    dx = (rows @ rounding.values()).view(x.shape).to(x.dtype)
    d_values = rows.T @ x.reshape(-1, form.shape[1]).float()
    clipped = rounding.clipped
    d_scales = rounding.by_group(d_values * torch.where(clipped, rounding.steps, rounding.steps - rounding.positions))
    if zero == "float":
        d_shifts = rounding.by_group(d_values * clipped)
    elif zero == "integer":
        d_shifts = rounding.by_group(d_values * clipped * -rounding.scale)
    else:
        d_shifts = scales.new_empty(0)
    highest = (1 << (bits - 1)) - 1 if zero == "symmetric" else max_code(bits)
    balance = 1 / math.sqrt(group_size * highest)
    d_weight = d_values.masked_fill(clipped, 0.0).to(weight.dtype)
    grouped = ((each * balance).to(scales.dtype) for each in (d_scales, d_shifts))
    return dx, d_weight, *grouped, rows.sum(dim=0)


def _fake_grads(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    shifts: torch.Tensor | None,
    *_: Any,
) -> tuple[torch.Tensor, ...]:
    refuse_meta(dy=dy, x=x, weight=weight, scales=scales, shifts=shifts)
    d_shifts = scales.new_empty(0 if shifts is None else shifts.shape)
    d_bias = weight.new_empty(weight.shape[0], dtype=torch.float32)
    contiguous = [torch.empty_like(each, memory_format=torch.contiguous_format) for each in (x, weight, scales)]
    return *contiguous, d_shifts, d_bias


_library = torch.library.Library("bittensor", "FRAGMENT")  # type: ignore[no-untyped-call]
_ARGUMENTS = "int bits, int group_size, str zero, ScalarType scale_dtype"
for _schema in (
    "fake_quantized_linear(Tensor x, Tensor weight, Tensor scales, Tensor? shifts, Tensor? bias, "
    f"{_ARGUMENTS}, str activation_mode, str backend) -> Tensor",
    "fake_quantized_linear_grads(Tensor dy, Tensor x, Tensor weight, Tensor scales, Tensor? shifts, "
    f"{_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
for _name, _function, _its_fake in (
    ("fake_quantized_linear", _compute, _fake),
    ("fake_quantized_linear_grads", _compute_grads, _fake_grads),
):
    _library.impl(_name, _function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"bittensor::{_name}", _its_fake, lib=_library)
torch.library.register_autograd("bittensor::fake_quantized_linear", _backward, setup_context=_save, lib=_library)
_library.impl(  # type: ignore[no-untyped-call]
    "fake_quantized_linear", autocast_linear(torch.ops.bittensor.fake_quantized_linear.default), "AutocastCPU"
)
