"""A float32 multiply-add with a single rounding, from float64 arithmetic."""

from __future__ import annotations

import torch


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """``a * b + c`` of float32 tensors that broadcast together, rounded once to float32, ties to even.

    The product of two float32 is exact in float64. The sum is not, and rounding it twice, to float64 and to float32,
    may go wrong at a tie. Rounded to odd in float64, it cannot: 53 bits are at least two more than twice 24 (Boldo and
    Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).

    >>> one = torch.tensor(1.0)
    >>> bool(fma(one + 2.0**-12, one + 2.0**-12, torch.tensor(2.0**-80)) == 1 + 2.0**-11 + 2.0**-23)
    True
    """
    product = a.to(torch.float64) * b.to(torch.float64)
    addend = c.to(torch.float64)
    total = product + addend
    # Knuth's TwoSum: what the rounding of the sum left over, exactly.
    part = total - product
    rest = (product - (total - part)) + (addend - part)
    return _round_to_odd(total, rest).to(torch.float32)


def _round_to_odd(total: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """``total + rest``, where `total` is that sum rounded to nearest, as its neighbor in float64 with an odd last bit.

    An even `total` is replaced by its neighbor on the side of the rest. Where the sum is infinite or NaN, `rest` is
    NaN and `total` stays.
    """
    is_even = total.contiguous().view(torch.int64) & 1 == 0
    inexact = total.isfinite() & (rest != 0) & ~rest.isnan()
    toward = torch.where(rest > 0, torch.inf, -torch.inf).to(torch.float64)
    return torch.where(inexact & is_even, torch.nextafter(total, toward), total)
