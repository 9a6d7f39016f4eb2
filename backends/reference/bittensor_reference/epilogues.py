"""The epilogues of a linear, as docs/numerics.md, sections 4 and 7, defines them: float32 to float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from .fma import fma

EXP_COEFFICIENTS = tuple(
    map(float.fromhex, ("0x1.6c69fp-10", "0x1.120b28p-7", "0x1.5555bap-5", "0x1.5554dep-3", "0x1p-1", "0x1p0", "0x1p0"))
)
"""exp(r) on |r| <= ln 2 / 2, the highest power first."""

ERFC_COEFFICIENTS = tuple(
    map(
        float.fromhex,
        (
            "0x1.f96b82p-5",
            "-0x1.26fd6ep-2",
            "0x1.bc4f1p-2",
            "-0x1.d93f88p-3",
            "0x1.19710ep-2",
            "0x1.efc604p-4",
            "0x1.a4b8c6p-3",
            "0x1.af609cp-3",
            "0x1.b162e6p-3",
        ),
    )
)
"""exp(u^2) erfc(u) / s with s = 1 / (1 + 0.375 u), as a polynomial of s, the highest power first."""


def relu(v: torch.Tensor) -> torch.Tensor:
    """0 where v < 0: NaN stays NaN, -0 stays -0."""
    return torch.where(v < 0, 0.0, v)


def silu(v: torch.Tensor) -> torch.Tensor:
    """``v / (1 + exp(-v))``, from the exponential of the negative magnitude."""
    e = exp_of_negative(v.abs())
    return torch.where(v.signbit(), v * e, v) / (e + 1.0)


def gelu(v: torch.Tensor) -> torch.Tensor:
    """``v Phi(v)``, with ``Phi(-|v|) = erfc(|v| / sqrt 2) / 2``."""
    u = v.abs() * _constant("0x1.6a09e6p-1")
    s = torch.ones_like(u) / fma(u, _constant("0x1.8p-2"), _constant("0x1p0"))
    tail = (_polynomial(ERFC_COEFFICIENTS, s) * s) * exp_of_negative(u * u) * 0.5
    return v * torch.where(v.signbit(), tail, 1.0 - tail)


def exp_of_negative(t: torch.Tensor) -> torch.Tensor:
    """exp(-t) of float32 t >= 0, as 2^n exp(r) with n = rne(-t / ln 2); a NaN counts as 88."""
    bounded = torch.where(t < 88.0, t, 88.0)
    n = torch.round(bounded * _constant("-0x1.715476p0"))
    # ln 2 in two parts, of which the first has few bits, so that n times it is exact
    r = fma(n, _constant("-0x1.63p-1"), 0.0 - bounded)
    r = fma(n, _constant("0x1.bd0106p-13"), r)
    power = ((n.to(torch.int32) + 127) << 23).view(torch.float32)  # 2^n, and 0 for n = -127
    return _polynomial(EXP_COEFFICIENTS, r) * power


def _polynomial(coefficients: Sequence[float], x: torch.Tensor) -> torch.Tensor:
    """By Horner's rule, each step one fma."""
    first, *rest = (torch.tensor(coefficient, dtype=torch.float32, device="cpu") for coefficient in coefficients)
    total = first.expand_as(x)
    for coefficient in rest:
        total = fma(total, x, coefficient)
    return total


def _constant(hexadecimal: str) -> torch.Tensor:
    return torch.tensor(float.fromhex(hexadecimal), dtype=torch.float32, device="cpu")


EPILOGUES: Mapping[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda v: v,
    "relu": relu,
    "gelu": gelu,
    "silu": silu,
}
