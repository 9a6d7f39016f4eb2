"""The oracle of the linears against exact arithmetic: fractions, with IEEE's rounding written out."""

from __future__ import annotations

from fractions import Fraction
from random import Random

import numpy as np
import pytest
from bittensor_conformance import oracle_linear
from bittensor_conformance.fills import Fill
from bittensor_conformance.float_fills import FLOAT_STYLES, FloatFill, FloatStyle
from bittensor_conformance.linear_cases import LinearCase, WeightCase
from bittensor_conformance.oracle_linear import FloatDtype, ZeroKind

FORMATS: dict[FloatDtype, tuple[int, int]] = {"float32": (24, -149), "float16": (11, -24), "bfloat16": (8, -133)}
"""Significant bits, and the exponent of the smallest subnormal."""


def nearest(value: Fraction, dtype: FloatDtype = "float32") -> Fraction:
    """The nearest number of the format, halves to even; no limit upwards."""
    if value == 0:
        return value
    digits, smallest = FORMATS[dtype]
    exponent = abs(value).numerator.bit_length() - abs(value).denominator.bit_length()
    exponent += abs(value) >= Fraction(2) ** (exponent + 1)
    exponent -= abs(value) < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - digits + 1, smallest)
    return round(value / unit) * unit


def _random_float(random: Random) -> np.float32:
    exponent = random.choice((random.randrange(-149, -120), random.randrange(-30, 30), random.randrange(-3, 3)))
    return np.float32(random.choice((-1, 1)) * random.randrange(2**24) * 2.0 ** (exponent - random.choice((0, 12, 23))))


def test_fma_rounds_once() -> None:
    random = Random(0)
    triples = []
    for _ in range(20000):
        a, b, c = (_random_float(random) for _ in range(3))
        if random.random() < 0.4:  # a sum next to a tie: c cancels the product, or towers above it
            c = np.float32(-(float(a) * float(b)) * random.choice((1, 1 + 2.0**-23, 2.0**24, 2.0**25, 2.0**-24)))
        if np.isfinite([a, b, c]).all() and abs(float(a) * float(b)) + abs(float(c)) < 2.0**127:
            triples.append((a, b, c))
    columns = [np.array(column, dtype=np.float32) for column in zip(*triples, strict=True)]
    results = oracle_linear.fma(*columns)
    ties = 0
    for (a, b, c), result in zip(triples, results, strict=True):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        assert Fraction(float(result)) == nearest(exact), (a, b, c)
        ties += float(result) != float(np.float32(np.float32(a * b) + c))
    assert ties > 1000, "most of these sums should need the single rounding"


@pytest.mark.parametrize("dtype", FORMATS)
def test_rounding_to_a_dtype(dtype: FloatDtype) -> None:
    random = Random(1)
    values = np.array([_random_float(random) for _ in range(5000)], dtype=np.float32)
    values = np.concatenate([values, FloatFill("ties").floats((500,)), np.float32(2.0**-24) * np.arange(-9, 9)])
    values = values.astype(np.float32)[np.abs(values) < 60000]
    for value, result in zip(values, oracle_linear.rounded(values, dtype), strict=True):
        assert Fraction(float(result)) == nearest(Fraction(float(value)), dtype), value
    assert oracle_linear.rounded(np.float32([-0.0]), dtype).view(np.uint32)[0] == 2**31
    assert np.isnan(oracle_linear.rounded(np.float32([np.nan]), dtype)).all()
    assert np.isinf(oracle_linear.rounded(np.float32([np.inf, 3.4028235e38])[: 1 + (dtype != "float32")], dtype)).all()


def _exact_row(x: list[Fraction], case: LinearCase, output: int) -> Fraction:
    """Section 4 for one row and one output, number by number."""
    weight, y = case.weight.weight, Fraction(0)
    together = 1 if weight.bits == 8 or weight.offsets is not None else 64 // weight.group_size or 1
    for first in range(0, weight.groups, together):
        groups = range(first, min(first + together, weight.groups))
        columns = range(first * weight.group_size, min(groups.stop * weight.group_size, weight.columns))
        amax = max(abs(x[k]) for k in columns)
        if amax < Fraction(2) ** -100:
            codes, scale = dict.fromkeys(columns, 0), Fraction(0)
        else:
            inverse, scale = nearest(127 / amax), nearest(amax / 127)
            codes = {k: round(nearest(x[k] * inverse)) for k in columns}
        z = Fraction(0)
        for group in groups:
            own = [k for k in columns if k // weight.group_size == group]
            zero = 2 ** (weight.bits - 1) if weight.zeros is None else int(weight.zeros[output, group])
            if weight.offsets is not None:
                zero = 0
            t = sum(codes[k] * (int(weight.codes[output, k]) - zero) for k in own)
            z = nearest(nearest(Fraction(t)) * Fraction(float(weight.scales[output, group])) + z)
            if weight.offsets is not None:
                total = nearest(Fraction(sum(codes[k] for k in own)))
                z = nearest(total * Fraction(float(weight.offsets[output, group])) + z)
        y = nearest(z * scale + y)
    if case.bias is not None:
        y = nearest(y + Fraction(float(case.inputs["bias"].values[output])))
    return nearest(max(y, Fraction(0)) if case.epilogue == "relu" else y, case.x_dtype)


def _polynomial(coefficients: str, x: Fraction) -> Fraction:
    total = Fraction(0)
    for coefficient in coefficients.split():
        total = nearest(total * x + Fraction(float.fromhex(coefficient)))
    return total


def _exp_of_negative(t: Fraction) -> Fraction:
    n = round(nearest(min(t, Fraction(88)) * Fraction(float.fromhex("-0x1.715476p0"))))
    r = nearest(n * Fraction(float.fromhex("-0x1.63p-1")) - min(t, Fraction(88)))
    r = nearest(n * Fraction(float.fromhex("0x1.bd0106p-13")) + r)
    e = "0x1.6c69fp-10 0x1.120b28p-7 0x1.5555bap-5 0x1.5554dep-3 0x1p-1 0x1p0 0x1p0"
    return nearest(_polynomial(e, r) * Fraction(2) ** n) if n > -127 else Fraction(0)


def _exact_epilogue(v: Fraction, epilogue: str) -> Fraction:
    """Section 7, number by number."""
    if epilogue == "silu":
        e = _exp_of_negative(abs(v))
        return nearest((v if v >= 0 else nearest(v * e)) / nearest(1 + e))
    u = nearest(abs(v) * Fraction(float.fromhex("0x1.6a09e6p-1")))
    s = nearest(1 / nearest(u * Fraction(3, 8) + 1))
    p = (
        "0x1.f96b82p-5 -0x1.26fd6ep-2 0x1.bc4f1p-2 -0x1.d93f88p-3 0x1.19710ep-2 0x1.efc604p-4 0x1.a4b8c6p-3 "
        "0x1.af609cp-3 0x1.b162e6p-3"
    )
    exponential = _exp_of_negative(nearest(u * u))
    tail = nearest(nearest(nearest(_polynomial(p, s) * s) * exponential) / 2)
    return nearest(v * (tail if v < 0 else nearest(1 - tail)))


@pytest.mark.parametrize("epilogue", ["gelu", "silu"])
def test_epilogue_is_its_definition_and_near_the_function(epilogue: str) -> None:
    fills = (FloatFill("normal", 1, 3.0), FloatFill("positive", 2, -100.0), FloatFill("wide", 3), FloatFill("zero"))
    values = np.concatenate([fill.floats((400,)) for fill in fills])
    results = oracle_linear.apply_epilogue(values, epilogue)
    for value, result in zip(values, results, strict=True):
        assert Fraction(float(result)) == _exact_epilogue(Fraction(float(value)), epilogue), value
    wide = values.astype(np.float64)
    real = oracle_linear.real_epilogue(wide, epilogue)
    assert (np.abs(results - real) <= 4.3 * 2.0**-24 * np.abs(wide) + 2.0**-149).all()
    # The slopes of section 5, by differences.
    steps = np.diff(oracle_linear.real_epilogue(np.linspace(-20, 20, 400001), epilogue)) / 1e-4
    slope = oracle_linear.SLOPES[epilogue]
    assert slope - 0.01 < np.abs(steps).max() < slope


@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_int8_linear_is_its_definition(bits: int, zero: ZeroKind) -> None:
    calm: list[FloatStyle] = [style for style in FLOAT_STYLES if style not in ("wide", "huge")]
    for seed, style in enumerate(calm):
        dtype = list(FORMATS)[seed % 3]
        weight = WeightCase(bits, 4, 21, 8, zero, dtype, codes=Fill("max" if seed % 4 == 0 else "random", seed))
        case = LinearCase(
            weight, (3,), "int8", FloatFill(style, seed), "float32" if style == "groups" else dtype,
            bias=FloatFill() if seed % 2 else None, epilogue="relu" if seed % 3 == 0 else None,
        )  # fmt: skip
        rows = [[Fraction(float(value)) for value in row] for row in case.inputs["x"].values]
        expected = [[float(_exact_row(row, case, output)) for output in range(4)] for row in rows]
        assert isinstance(case.expected, np.ndarray)
        assert case.expected.tolist() == expected, case


def test_interval_holds_the_exact_sum() -> None:
    case = LinearCase(WeightCase(4, 3, 300, 32, "float", "bfloat16"), (2,), "float", bias=FloatFill())
    interval = case.expected
    assert isinstance(interval, oracle_linear.Interval)
    weight, x = case.weight.weight, case.inputs["x"].values
    for row in range(2):
        for output in range(3):
            exact = Fraction(float(case.inputs["bias"].values[output]))
            size = Fraction(0)
            for k in range(300):
                scale, offset = (Fraction(float(each[output, k // 32])) for each in (weight.scales, weight.offsets))
                product, code = Fraction(float(x[row, k])), int(weight.codes[output, k])
                exact += product * (scale * code + offset)
                size += abs(product) * (abs(scale * code) + abs(offset))
            assert abs(exact - Fraction(float(interval.center[row, output]))) < size * Fraction(2) ** -44
            bound = (300 + 10 + 4) * Fraction(2) ** -24 * size
            assert bound <= Fraction(float(interval.bound[row, output])) * Fraction(1000001, 1000000)
            assert Fraction(float(interval.bound[row, output])) < bound * Fraction(11, 10)


def test_rows_that_are_not_finite_are_marked() -> None:
    weight = WeightCase(4, 3, 17, 8)
    case = LinearCase(weight, (3,), special="-inf", epilogue="relu")
    assert isinstance(case.expected, np.ndarray)
    assert np.isnan(case.expected).tolist() == [[False] * 3, [True] * 3, [False] * 3]
    interval = LinearCase(weight, (3,), "float", special="nan").expected
    assert isinstance(interval, oracle_linear.Interval)
    assert interval.comparable.tolist() == [[True] * 3, [False] * 3, [True] * 3]
