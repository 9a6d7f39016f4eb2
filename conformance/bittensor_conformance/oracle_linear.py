"""The oracle for sections 3 to 5 of docs/numerics.md: group-quantized weights and the two linears.

As in oracle.py, nothing here is shared with what is tested. Every float32 step is either one NumPy operation on float32
arrays, or `fma`, which is exact in float64 up to its one rounding. float16 and bfloat16 values are kept as the float32
values they widen to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .oracle import Codes, Integers, largest_code

Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
FloatDtype = Literal["float32", "float16", "bfloat16"]
ZeroKind = Literal["symmetric", "integer", "float"]

SMALLEST_AMAX = np.float32(2.0**-100)
_HALF_CODE = 0.5 + 2.0**-14
"""Section 4: the largest error of a code; float32 may round x * (127 / amax) across a half."""
_FIXED_POINT = 2.0**-22
"""Section 5: the largest error of an activation, as a part of the largest magnitude of its group."""
_HALF_UNIT: dict[FloatDtype, float] = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit in the last place of 1.0: the largest relative error of one rounding."""
SMALLEST: dict[FloatDtype, float] = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
"""The smallest subnormal: twice the largest error of one rounding near 0."""
LARGEST: dict[FloatDtype, float] = {
    "float32": float(np.finfo(np.float32).max),
    "float16": 65504.0,
    "bfloat16": float(np.array(0x7F7F0000, dtype=np.uint32).view(np.float32)),
}


@dataclass(frozen=True)
class Weight:
    """A group-quantized weight: codes ``[N, K]``, and scales with zeros or offsets ``[N, G]``."""

    codes: Codes
    scales: Floats
    zeros: Codes | None
    offsets: Floats | None
    bits: int
    group_size: int

    @property
    def columns(self) -> int:
        return int(self.codes.shape[1])

    @property
    def groups(self) -> int:
        return -(-self.columns // self.group_size)

    def centered(self) -> Integers:
        """Q - zero for each code, ``[N, K]``, exact; q itself if there are offsets."""
        codes: Integers = self.codes.astype(np.int64)
        if self.zeros is not None:
            codes -= self.spread(self.zeros)
        elif self.offsets is None:
            codes -= (largest_code(self.bits) + 1) // 2
        return codes

    def spread(self, grouped: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The value of its group for each column: ``[N, G]`` to ``[N, K]``."""
        group_of_column = np.arange(self.columns) // self.group_size
        spread: npt.NDArray[Any] = grouped[:, group_of_column]
        return spread


def dequantize(weight: Weight, dtype: FloatDtype = "float32") -> Floats:
    """Scale * (q - zero), or scale * q + offset: a product and a sum in float32, then the cast."""
    with np.errstate(over="ignore", under="ignore"):
        values: Floats = weight.spread(weight.scales) * weight.centered().astype(np.float32)
        if weight.offsets is not None:
            values = values + weight.spread(weight.offsets)
    assert values.dtype == np.float32, "every step is rounded to float32"
    return rounded(values, dtype)


def rounded(values: Floats, dtype: FloatDtype) -> Floats:
    """The nearest values of `dtype`, halves to even, as float32."""
    if dtype == "float32":
        return values
    with np.errstate(over="ignore", under="ignore"):
        if dtype == "float16":
            return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    nearest = ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16) << np.uint64(16)).astype(
        np.uint32
    )
    result: Floats = np.where(np.isnan(values), np.float32(np.nan), nearest.view(np.float32))
    return result


def fma(a: Floats, b: Floats | np.float32, c: Floats | np.float32) -> Floats:
    """A * b + c with one rounding, to float32.

    The product of two float32 is exact in float64. Its sum with c is rounded there to odd: of the two neighbours of an
    inexact sum, the one with an odd last bit is taken. That bit then says on which side of a tie the sum lies, and the
    second rounding, which drops more than two bits, is the only one that counts.
    """
    assert a.dtype == b.dtype == c.dtype == np.float32
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product = a.astype(np.float64) * b.astype(np.float64)
        addend = c.astype(np.float64)
        total: Doubles = np.asarray(product + addend)
        # Knuth's TwoSum: total + error is product + addend, exactly.
        restored = total - product
        error = (product - (total - restored)) + (addend - restored)
        inexact = np.isfinite(total) & (error != 0)
        even = (total.view(np.int64) & 1) == 0
        outward = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        result: Floats = np.where(inexact & even, outward, total).astype(np.float32)
    return result


@dataclass(frozen=True)
class Activations:
    """Rows quantized to int8: codes ``[M, G, group_size]`` with zeros for columns that do not exist.

    The scales are ``[M, A]``, of groups of activations.
    """

    codes: Doubles
    scales: Floats
    not_finite: npt.NDArray[np.bool_]


def groups_together(weight: Weight) -> int:
    """Section 4: groups of a weight that meet one group of activations."""
    return max(64 // weight.group_size, 1) if weight.bits <= 4 and weight.offsets is None else 1


def quantize_activations(x: Floats, weight: Weight) -> Activations:
    """Codes and scales of each row ``[M, K]`` for `weight`; a row with a NaN or an infinity is marked."""
    group_size, together = weight.group_size, groups_together(weight)
    rows, columns = x.shape
    groups = -(-columns // group_size)
    length = group_size * together
    count = -(-columns // length)
    padded = np.zeros((rows, count * length), dtype=np.float32)
    padded[:, :columns] = np.where(np.isfinite(x), x, np.float32(0))
    values = padded.reshape(rows, count, length)
    amax = np.abs(values).max(axis=2)
    is_zero = amax < SMALLEST_AMAX
    divisor = np.where(is_zero, np.float32(1), amax)
    inverse = np.float32(127) / divisor
    scales: Floats = np.where(is_zero, np.float32(0), divisor / np.float32(127))
    with np.errstate(under="ignore"):
        codes = np.where(is_zero[:, :, None], np.float32(0), np.rint(values * inverse[:, :, None]))
    assert inverse.dtype == scales.dtype == codes.dtype == np.float32
    assert not codes.size or np.abs(codes).max() <= 127
    bad: npt.NDArray[np.bool_] = np.any(~np.isfinite(x), axis=1)
    by_group = codes.astype(np.float64).reshape(rows, count * together, group_size)[:, :groups]
    return Activations(by_group, scales, bad)


_EXP = ("0x1.6c69fp-10", "0x1.120b28p-7", "0x1.5555bap-5", "0x1.5554dep-3", "0x1p-1", "0x1p0", "0x1p0")
_ERFC = ("0x1.f96b82p-5", "-0x1.26fd6ep-2", "0x1.bc4f1p-2", "-0x1.d93f88p-3", "0x1.19710ep-2", "0x1.efc604p-4",
         "0x1.a4b8c6p-3", "0x1.af609cp-3", "0x1.b162e6p-3")  # fmt: skip
"""Coefficients of E and P in section 7, the highest power first."""

SLOPES = {None: 1.0, "relu": 1.0, "gelu": 1.13, "silu": 1.1}
"""Section 5: by how much an epilogue enlarges an error of y at most."""
_OWN_ERRORS = {None: 0.0, "relu": 0.0, "gelu": 2.0**-21, "silu": 2.0**-21}
"""Section 5: the error of an epilogue itself, a part of |y|."""


def _constant(hexadecimal: str) -> np.float32:
    return np.float32(float.fromhex(hexadecimal))


def _polynomial(coefficients: tuple[str, ...], x: Floats) -> Floats:
    total: Floats = np.full_like(x, _constant(coefficients[0]))
    for coefficient in coefficients[1:]:
        total = fma(total, x, _constant(coefficient))
    return total


def _exp_of_negative(t: Floats) -> Floats:
    t = np.where(t < 88, t, np.float32(88))
    n = np.rint(t * _constant("-0x1.715476p0"))
    r = fma(n, _constant("0x1.bd0106p-13"), fma(n, _constant("-0x1.63p-1"), np.float32(0) - t))
    power = np.where(n == -127, 0, np.ldexp(1.0, n.astype(np.int32))).astype(np.float32)
    result: Floats = _polynomial(_EXP, r) * power
    return result


def apply_epilogue(v: Floats, epilogue: str | None) -> Floats:
    """Sections 4 and 7: the epilogue of float32 values, to the bit."""
    result = v
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if epilogue == "relu":
            result = np.where(v < 0, np.float32(0), v)  # NaN stays NaN
        elif epilogue == "silu":
            e = _exp_of_negative(np.abs(v))
            result = np.where(np.signbit(v), v * e, v) / (np.float32(1) + e)
        elif epilogue == "gelu":
            u = np.abs(v) * _constant("0x1.6a09e6p-1")
            s = np.float32(1) / fma(u, np.float32(0.375), np.float32(1))
            tail = np.float32(0.5) * (_polynomial(_ERFC, s) * s * _exp_of_negative(u * u))
            result = v * np.where(np.signbit(v), tail, np.float32(1) - tail)
        else:
            assert epilogue is None
    assert result.dtype == np.float32, "every step is rounded to float32"
    return result


_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def real_epilogue(v: Doubles, epilogue: str | None) -> Doubles:
    """The function of real numbers that an epilogue is named after, in float64."""
    result = v
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if epilogue == "relu":
            result = np.maximum(v, 0)
        elif epilogue == "silu":
            result = v / (1 + np.exp(-v))
        elif epilogue == "gelu":
            result = v * _erfc(-v * math.sqrt(0.5)) / 2
    return result


def linear_int8(x: Floats, weight: Weight, bias: Floats | None, epilogue: str | None, dtype: FloatDtype) -> Floats:
    """Section 4 for rows ``[M, K]``: ``[M, N]``, rounded to `dtype`."""
    quantized = quantize_activations(x, weight)
    rows, outputs = x.shape[0], weight.codes.shape[0]
    codes = np.zeros((outputs, weight.groups * weight.group_size))
    codes[:, : weight.columns] = weight.codes
    by_group = codes.reshape(outputs, weight.groups, weight.group_size)
    # Sums of integers far below 2**53: exact in float64, in any order.
    dots = np.matmul(quantized.codes.transpose(1, 0, 2), by_group.transpose(1, 2, 0))
    sums = quantized.codes.sum(axis=2)
    y = np.zeros((rows, outputs), dtype=np.float32)
    together = groups_together(weight)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for a in range(quantized.scales.shape[1]):
            z = np.zeros_like(y)
            for g in range(a * together, min((a + 1) * together, weight.groups)):
                total = dots[g]
                if weight.offsets is None:
                    zero = (largest_code(weight.bits) + 1) // 2 if weight.zeros is None else weight.zeros[:, g]
                    total = total - sums[:, g, None] * zero
                term, scale = total.astype(np.float32), weight.scales[None, :, g]
                z = term * scale if g % together == 0 else fma(term, scale, z)
                if weight.offsets is not None:
                    z = fma(sums[:, g, None].astype(np.float32), weight.offsets[None, :, g], z)
            y = fma(z, quantized.scales[:, a, None], y)
        if bias is not None:
            y = y + bias
    y[quantized.not_finite] = np.nan
    return rounded(apply_epilogue(y, epilogue), dtype)


@dataclass(frozen=True)
class Interval:
    """What section 5 allows: results within `reach` of `center`, where `comparable`.

    Attributes:
        center: the result in float64, before the cast.
        bound: largest error before the cast.
        reach: largest error after it.
        comparable: False where a step may have left the range of float32, or the row is not finite.
    """

    center: Doubles
    bound: Doubles
    reach: Doubles
    comparable: npt.NDArray[np.bool_]


def _interval(
    x: Floats, weight: Weight, bias: Floats | None, epilogue: str | None, dtype: FloatDtype, moved: Doubles
) -> Interval:
    """Section 5 for rows ``[M, K]``: the interval for each of ``[M, N]``.

    `moved` ``[M, K]`` says by how much each value of x may be off before it is multiplied.
    """
    finite: npt.NDArray[np.bool_] = np.all(np.isfinite(x), axis=1)
    values = np.where(finite[:, None], x, np.float32(0)).astype(np.float64)
    scales = weight.spread(weight.scales).astype(np.float64)
    dequantized = scales * weight.centered()
    sizes = np.abs(scales * weight.codes)
    if weight.offsets is not None:
        offsets = weight.spread(weight.offsets).astype(np.float64)
        dequantized += offsets
        sizes += np.abs(offsets)
    else:
        sizes += np.abs(scales * (weight.codes - weight.centered()))
    center: Doubles = values @ dequantized.T
    reached = np.abs(values) + moved
    size: Doubles = reached @ sizes.T
    steps = weight.columns + weight.groups + 4
    bound = steps * (_HALF_UNIT["float32"] * size + 2.0**-149)
    largest = reached.sum(axis=1, keepdims=True) * largest_code(weight.bits)
    bound = bound + moved @ np.abs(dequantized).T
    # Below the normal range may be scales of activations times those of the weight, which sums of codes multiply, or
    # sums of codes times scales of the weight, which scales of activations multiply.
    codes = weight.columns * 127 * largest_code(weight.bits)
    bound = bound + (codes + 2 * moved.sum(axis=1, keepdims=True)) * 2.0**-149
    largest = np.maximum(largest, 127 * sizes.sum(axis=1))
    if bias is not None:
        center = center + bias
        bound = bound + _HALF_UNIT["float32"] * (np.abs(bias) + np.abs(center))
        largest = largest + np.abs(bias)
    bound = SLOPES[epilogue] * bound + _OWN_ERRORS[epilogue] * (np.abs(center) + bound)
    center = real_epilogue(center, epilogue)
    reach = bound + np.maximum(_HALF_UNIT[dtype] * (np.abs(center) + bound), SMALLEST[dtype] / 2)
    in_range = np.maximum(size, largest) < LARGEST["float32"] / 4
    fits = np.abs(center) + reach < LARGEST[dtype]
    return Interval(center, bound, reach, finite[:, None] & in_range & fits)


def _moved(x: Floats, weight: Weight, part: float) -> Doubles:
    """A part of the largest magnitude of the group of activations of each value, all of it if that counts as zero."""
    rows, columns = x.shape
    length = weight.group_size * groups_together(weight)
    count = -(-columns // length)
    padded = np.zeros((rows, count * length))
    padded[:, :columns] = np.where(np.isfinite(x), np.abs(x), 0)
    largest = padded.reshape(rows, count, length).max(axis=2)
    moved = np.where(largest < SMALLEST_AMAX, largest, largest * part)
    return np.repeat(moved, length, axis=1)[:, :columns]


def linear_int8_bound(
    x: Floats, weight: Weight, bias: Floats | None, epilogue: str | None, dtype: FloatDtype
) -> Interval:
    """Section 4 for bounded numerics: as section 5, with activations that are off by half a code of their group."""
    return _interval(x, weight, bias, epilogue, dtype, _moved(x, weight, _HALF_CODE / 127))


def linear_float(x: Floats, weight: Weight, bias: Floats | None, epilogue: str | None, dtype: FloatDtype) -> Interval:
    """Section 5 for rows ``[M, K]``: the interval for each of ``[M, N]``."""
    return _interval(x, weight, bias, epilogue, dtype, _moved(x, weight, _FIXED_POINT))


def linear_input_grad(dy: Floats, weight: Weight, dtype: FloatDtype) -> Interval:
    """Section 6 for rows ``[M, N]``: the interval for each of ``[M, K]``."""
    finite: npt.NDArray[np.bool_] = np.all(np.isfinite(dy), axis=1)
    values = np.where(finite[:, None], dy, np.float32(0)).astype(np.float64)
    interval = gradient_of_input(values, np.zeros_like(values), weight, dtype)
    return replace(interval, comparable=interval.comparable & finite[:, None])


def gradient_of_input(dv: Doubles, moved: Doubles, weight: Weight, dtype: FloatDtype) -> Interval:
    """Section 6 for finite rows ``[M, N]`` that may be off by `moved`: the interval for each of ``[M, K]``."""
    dequantized = dequantize(weight).astype(np.float64)
    center: Doubles = dv @ dequantized
    size: Doubles = (np.abs(dv) + moved) @ np.abs(dequantized)
    outputs = weight.codes.shape[0]
    bound = (outputs + 1) * _HALF_UNIT["float32"] * size + outputs * 2.0**-149 + moved @ np.abs(dequantized)
    reach = bound + np.maximum(_HALF_UNIT[dtype] * (np.abs(center) + bound), SMALLEST[dtype] / 2)
    fits = (size < LARGEST["float32"] / 4) & (np.abs(center) + reach < LARGEST[dtype])
    return Interval(center, bound, reach, fits)


def gradient_of_bias(dv: Doubles, moved: Doubles) -> Interval:
    """Section 6: the sum of the rows ``[M, N]``, which may be off by `moved`, in float32."""
    rows = dv.shape[0]
    bound = (rows + 1) * _HALF_UNIT["float32"] * np.abs(dv).sum(axis=0) + moved.sum(axis=0) + 2.0**-149
    center: Doubles = dv.sum(axis=0)
    return Interval(center, bound, bound, np.isfinite(center))


def derivative(v: Doubles, off: Doubles, epilogue: str) -> tuple[Doubles, Doubles]:
    """Section 6: the derivative of GELU or SiLU, and its largest error where v is `off` and float32 computes it.

    The second derivatives are 2 phi(0) = 0.798 and 0.5 at most.
    """
    if epilogue == "gelu":
        slope = _erfc(-v * math.sqrt(0.5)) / 2 + v * np.exp(-v * v / 2) / math.sqrt(2 * math.pi)
    else:
        logistic = 1 / (1 + np.exp(-v))
        slope = logistic * (1 + v * (1 - logistic))
    return slope, off * 0.8 + 2.0**-21 * (2 + np.abs(v))
