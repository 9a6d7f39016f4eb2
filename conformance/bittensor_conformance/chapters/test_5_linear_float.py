"""docs/numerics.md, section 5: linear with float activations, within the derived bound of the exact result."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import numpy as np

from bittensor.backend import Capabilities
from bittensor.prepared_weight import EPILOGUES

from ..cases import Snippet
from ..catalogue import check
from ..compare import fail
from ..fills import Fill
from ..float_fills import CALM_STYLES, FloatFill, FloatStyle
from ..layouts import LAYOUTS
from ..linear_cases import SPECIALS, LinearCase
from ..linear_strategies import FLOAT_DTYPES, OUTPUTS, epilogue_cases, linear_cases, scope, shapes_of_groups
from ..scripts import holds
from ..strategies import LEADING
from ..targets import Target
from .sizes import ROUND_AND_LARGE


def _float(capabilities: Capabilities, _: object) -> bool:
    return "float" in capabilities.activation_modes


_NAMED_EPILOGUES = {name: name for name in EPILOGUES if name is not None}


def _float_epilogue(capabilities: Capabilities, epilogue: Any) -> bool:
    return _float(capabilities, None) and epilogue in capabilities.epilogues


@check("linear", applies=_float)
def test_float_lies_within_the_bound(target: Target, bits: int) -> None:
    """Any weight, x, bias and epilogue: within the bound of the sum in float64, and half a unit of the dtype."""
    cases = linear_cases(bits, scope(target.capabilities), "float", target.profile.work)
    target.for_all(cases, lambda case: case.run(target.name))


@check("linear", applies=_float)
def test_float_of_any_layout_lies_within_the_bound(target: Target, bits: int) -> None:
    """Every tensor argument in any strides."""
    cases = linear_cases(bits, scope(target.capabilities), "float", target.profile.work // 4, any_layout=True)
    target.for_all(cases, lambda case: case.run(target.name))


@check("linear", applies=_float)
def test_float_every_shape_of_groups(target: Target, bits: int) -> None:
    """Every group size with whole and ragged groups, in each zero kind; integers, so that nothing may be lost."""
    within = scope(target.capabilities)
    dtypes = cycle(within.scale_dtypes)
    cases = [
        LinearCase(
            within.weight(bits, 18, k, group_size, zero, next(dtypes), poison=k), (m,), "float", FloatFill(seed=k)
        )
        for (group_size, k), zero, m in product(shapes_of_groups(), within.zeros, (1, 5))
    ]
    target.run(cases)


@check("linear", applies=_float)
def test_float_every_tail(target: Target, bits: int) -> None:
    """Tails of M and N, in each zero kind, and sums and outputs that are cut into passes and tasks."""
    within = scope(target.capabilities)
    zeros = within.zeros
    cases = [
        LinearCase(within.weight(bits, n, 41, 16, zero, codes=Fill("max")), (m,), "float", bias=FloatFill(seed=n))
        for n, zero, m in product(OUTPUTS, zeros, (1, 2, 7))
    ]
    kinds = cycle(zeros)
    cases += [
        LinearCase(within.weight(bits, 17, 41, 16, next(kinds)), (m,), "float", x_dtype=dtype)
        for m, dtype in product((*range(1, 18), 33, 65), FLOAT_DTYPES)
    ]
    cases += [
        LinearCase(within.weight(bits, n, k, group_size, next(kinds)), (m,), "float")
        for m, n, k, group_size in ((1, 33, 4100, 32), (9, 18, 3000, 24), (17, 17, 4100, 128), (2, 450, 72, 32))
    ]
    target.run(cases)


@check("linear", applies=_float)
def test_float_round_sizes_and_sizes_beyond_16_bits(target: Target, bits: int) -> None:
    """Whole multiples of whatever a backend cuts into, without a remainder, and more rows or outputs than 2**16."""
    within = scope(target.capabilities)
    cases = [
        LinearCase(within.weight(bits, n, k, size), (m,), "float", bias=FloatFill())
        for m, n, k, size in ROUND_AND_LARGE
    ]
    target.run(cases, always=True)


@check("linear", applies=_float)
def test_float_nan_passes_epilogues_and_scales_of_zero(target: Target, bits: int) -> None:
    """A NaN makes its row NaN behind each epilogue, and in groups whose scales are 0."""
    within = scope(target.capabilities)
    for epilogue, scales in product(within.epilogues, (FloatFill(seed=2), FloatFill("zero"))):
        weight = within.weight(bits, 18, 41, 8, scales=scales)
        case = LinearCase(weight, (3,), "float", special="nan", epilogue=epilogue)
        holds(target, _BAD_ROW, case=case, row=1)


@check("linear", applies=_float)
def test_float_long_rows_of_every_dtype(target: Target, bits: int) -> None:
    """Rows of thousands of columns, and many rows with an epilogue, in each dtype."""
    within = scope(target.capabilities)
    weight, epilogue = within.weight(bits, 17, 4100, 128), within.epilogues[-1]
    cases = [LinearCase(weight, (3,), "float", FloatFill(seed=1), dtype) for dtype in FLOAT_DTYPES]
    few = within.weight(bits, 35, 130, 64)
    cases += [LinearCase(few, (130,), "float", x_dtype=dtype, epilogue=epilogue) for dtype in FLOAT_DTYPES]
    target.run(cases, always=True)


@check("linear", applies=_float)
def test_float_deep_rows(target: Target, bits: int) -> None:
    """Rows so long that a backend may take a few of them at a time: each result is in its place."""
    within = scope(target.capabilities)
    target.run([LinearCase(within.weight(bits, 3, 33_000, 1024), (20,), "float", bias=FloatFill())], always=True)


@check("linear", applies=_float)
def test_float_every_dtype(target: Target, bits: int) -> None:
    """Each dtype of x, of scales and of the bias, in each zero kind, with and without bias and epilogue."""
    within = scope(target.capabilities)
    biases = ((None, "float32"), *((FloatFill(seed=1), dtype) for dtype in FLOAT_DTYPES))
    cases = [
        LinearCase(within.weight(bits, 19, 50, 16, zero, dtype), (3,), "float", x_dtype=x_dtype, bias=bias,
                   bias_dtype=bias_dtype, epilogue=epilogue)
        for zero, dtype, x_dtype, (bias, bias_dtype), epilogue in product(
            within.zeros, within.scale_dtypes, FLOAT_DTYPES, biases, within.epilogues
        )
    ]  # fmt: skip
    target.run(cases)


@check("linear", cases=_NAMED_EPILOGUES, applies=_float_epilogue)
def test_float_epilogue_of_every_value(target: Target, bits: int, case: str) -> None:
    """Each epilogue of values of any magnitude: within the error of the epilogue itself, where that is all there is."""
    target.run(epilogue_cases(bits, scope(target.capabilities), "float", case), always=True)


@check("linear", applies=_float)
def test_float_small_integers_are_exact(target: Target, bits: int) -> None:
    """Integers and powers of two, all far below 2^24: no step rounds, so the result is the integer in any order."""
    within = scope(target.capabilities)
    for zero, (group_size, k), m in product(within.zeros, ((None, 31), (8, 43), (16, 64), (32, 97)), (1, 4, 9)):
        weight = within.weight(
            bits, 35, k, group_size, zero, scales=FloatFill("ends"), offsets=FloatFill("integers", 2)
        )
        case = LinearCase(weight, (m,), "float", FloatFill("integers", k), bias=FloatFill("integers", 3))
        assert (np.abs(case.allowed.center) < 2**24).all()
        holds(target, _EXACT, case=case)


@check("linear", applies=_float)
def test_float_bound_is_below_the_signal(target: Target, bits: int) -> None:
    """On the cases of this chapter the bound is a small part of the result: to lie within it says something."""
    for case in _typical(target, bits):
        interval = case.allowed
        signal = float(np.median(np.abs(interval.center)))
        if not float(np.median(interval.bound)) < signal / 50:
            fail(f"the bound is {np.median(interval.bound):.3g}, the result {signal:.3g}", Snippet(case, target.name))
        if not interval.comparable.all():
            fail("a typical result is out of range", Snippet(case, target.name))
        case.run(target.name)
        target.examples += 1


@check("linear", applies=_float)
def test_float_errors_are_not_biased(target: Target, bits: int) -> None:
    """Errors are as often towards 0 as away from it: six standard errors of the mean are allowed."""
    for case in _typical(target, bits):
        holds(target, _UNBIASED, case=case)


@check("linear", applies=_float)
def test_float_every_magnitude_style(target: Target, bits: int) -> None:
    """Rows of zeros, of one sign, of equal magnitude, of magnitudes apart; wide ranges where no step overflows."""
    within = scope(target.capabilities)
    styles: tuple[FloatStyle, ...] = (*CALM_STYLES, "groups", "tiny", "subnormal", "huge")
    cases = [
        LinearCase(within.weight(bits, 17, 72, 8, zero), (4,), "float", FloatFill(style, 6), x_dtype)
        for zero, style, x_dtype in product(within.zeros, styles, FLOAT_DTYPES)
    ]
    target.run(cases)


@check("linear", applies=_float)
def test_float_one_bad_row(target: Target, bits: int) -> None:
    """A NaN makes its row NaN, an infinity makes it not finite; the other rows lie within their bounds."""
    within = scope(target.capabilities)
    for m, zero, dtype, special in product((1, 2, 5, 13), within.zeros, FLOAT_DTYPES, SPECIALS):
        case = LinearCase(within.weight(bits, 18, 41, 8, zero), (m,), "float", x_dtype=dtype, special=special)
        case.run(target.name)
        holds(target, _BAD_ROW, case=case, row=m // 2)


@check("linear", applies=_float)
def test_float_each_argument_in_each_layout(target: Target, bits: int) -> None:
    """One argument strided, the others contiguous: x with leading dimensions, the weight's tensors, the bias."""
    within = scope(target.capabilities)
    zero = within.zeros[-1]
    plain, cases = within.weight(bits, 17, 41, 16, zero), []
    for layout in LAYOUTS:
        strided = within.weight(bits, 17, 41, 16, zero, layout=layout)
        cases += [LinearCase(strided, (5,), "float")]
        cases += [LinearCase(plain, (5,), "float", bias=FloatFill(), bias_layout=layout)]
        cases += [
            LinearCase(plain, leading, "float", x_dtype=dtype, x_layout=layout)
            for leading in ((), (5,), (2, 3), (2, 1, 3))
            for dtype in ("float32", "bfloat16")
        ]
    cases += [LinearCase(plain, leading, "float", bias=FloatFill()) for leading in LEADING]
    target.run(cases, always=True)


def _typical(target: Target, bits: int) -> list[LinearCase]:
    """Larger linears on normal values: the cases on which bias and bound are judged."""
    within = scope(target.capabilities)
    dtypes = cycle(FLOAT_DTYPES)
    return [
        LinearCase(within.weight(bits, 48, k, group_size, zero), (32,), "float", x_dtype=next(dtypes))
        for zero in within.zeros
        for k, group_size in ((40, 8), (256, 32), (1100, 128), (900, None))
    ]


_EXACT = """
result = case.call().reshape(-1, case.weight.n)
same(result.double(), case.allowed.center, within=0.25)  # they are integers
"""
_UNBIASED = """
result, allowed = case.call().reshape(-1, case.weight.n).double().numpy(), case.allowed
outward = ((result - allowed.center) * np.sign(allowed.center) / allowed.reach).ravel()
# Errors of a row share its rounding, those of a column share the weight's: fewer are independent.
tolerance = 6 * outward.std() / np.sqrt(outward.size / 4) + 1e-12
assert abs(outward.mean()) <= tolerance, f"errors lean {outward.mean():+.3g} of the bound, {tolerance:.3g} is allowed"
"""
_BAD_ROW = """
bad = case.call().reshape(-1, case.weight.n)[row]
assert not bad.isfinite().any(), f"row {row} of x holds {case.special}, the result's is {bad.tolist()}"
assert "nan" not in case.special or bad.isnan().all(), f"row {row} of x holds a NaN, the result's is {bad.tolist()}"
"""
