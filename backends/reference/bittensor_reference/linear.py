"""The group-quantized linear as docs/numerics.md, sections 4 and 5, defines it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bittensor import QuantizedWeight

from .fma import fma

SMALLEST_AMAX = 2.0**-100
"""A group of activations below this counts as zero."""

ACTIVATION_GROUP_COLUMNS = 64
"""As many groups as lie in so many columns, and at least one, meet one group of activations, for weights of at most 4
bits without float offsets."""


@dataclass(frozen=True)
class Group:
    """A group of columns of a weight: codes float64 ``[N, columns]``, the rest float32 ``[N]``."""

    columns: slice
    codes: torch.Tensor
    zero: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None


def linear_int8(x: torch.Tensor, weight: QuantizedWeight, codes: torch.Tensor) -> torch.Tensor:
    """Section 4 before the bias: float32 ``[M, K]`` to ``[M, N]``. `codes` are those of the weight, unpacked."""
    y = x.new_zeros(x.shape[0], weight.shape[0])
    finite = x.isfinite().all(dim=1, keepdim=True)
    x = torch.where(finite, x, 0.0)
    for together in activation_groups(weight, list(groups(weight, codes))):
        begin, end = together[0].columns.start, together[-1].columns.stop
        x_codes, scale = quantize_activations(x[:, begin:end])
        z = None
        for group in together:
            part = x_codes[:, group.columns.start - begin : group.columns.stop - begin]
            # float64 holds these sums exactly, in any order.
            dot = F.linear(part, group.codes)
            total = part.sum(dim=1, keepdim=True)
            t = (dot - group.zero * total).to(torch.float32)
            z = t * group.scale if z is None else fma(t, group.scale, z)
            if group.offset is not None:
                z = fma(total.to(torch.float32), group.offset, z)
        assert z is not None
        y = fma(z, scale, y)
    return torch.where(finite, y, torch.nan)


def linear_float(x: torch.Tensor, weight: QuantizedWeight, codes: torch.Tensor) -> torch.Tensor:
    """Section 5 before the bias, in float64: float32 ``[M, K]`` to ``[M, N]``."""
    x = x.to(torch.float64)
    y = x.new_zeros(x.shape[0], weight.shape[0])
    for group in groups(weight, codes):
        part = x[:, group.columns]
        y = y + F.linear(part, group.codes - group.zero[:, None]) * group.scale
        if group.offset is not None:
            y = y + part.sum(dim=1, keepdim=True) * group.offset
    return y


def quantize_activations(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A group of float32 activations ``[M, columns]`` as codes, float64, and scales, float32 ``[M, 1]``."""
    amax = x.abs().amax(dim=1, keepdim=True)
    is_zero = amax < SMALLEST_AMAX
    # Division of tensors by tensors: torch divides a number by a tensor in two roundings.
    largest_code = torch.full_like(amax, 127.0)
    codes = torch.round(x * (largest_code / torch.where(is_zero, 1.0, amax)))
    return torch.where(is_zero, 0.0, codes).to(torch.float64), torch.where(is_zero, 0.0, amax / largest_code)


def activation_groups(weight: QuantizedWeight, groups: Sequence[Group]) -> Iterator[Sequence[Group]]:
    """The groups of a weight that meet one group of activations, in ascending order."""
    together = 1
    if weight.bits <= 4 and weight.zero != "float":
        together = max(ACTIVATION_GROUP_COLUMNS // weight.group_size, 1)
    return (groups[start : start + together] for start in range(0, len(groups), together))


def groups(weight: QuantizedWeight, codes: torch.Tensor) -> Iterator[Group]:
    """The groups of columns in ascending order."""
    codes = codes.to(torch.float64)
    tensors = {name: tensor.to(torch.float32) for name, tensor in weight.tensors().items() if name != "words"}
    rows, columns = weight.shape
    no_zero = torch.full(
        (rows,), 0.0 if weight.zero == "float" else 2.0 ** (weight.bits - 1), dtype=torch.float32, device="cpu"
    )
    for g in range(weight.form.groups):
        span = slice(g * weight.group_size, min((g + 1) * weight.group_size, columns))
        yield Group(
            span,
            codes[:, span],
            tensors["zeros"][:, g] if "zeros" in tensors else no_zero,
            tensors["scales"][:, g],
            tensors["offsets"][:, g] if "offsets" in tensors else None,
        )
