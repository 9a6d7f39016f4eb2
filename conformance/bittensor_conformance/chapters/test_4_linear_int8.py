"""docs/numerics.md, section 4: linear with int8 activations, bit for bit against the oracle, or within its bound."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

from bittensor.backend import Capabilities
from bittensor.prepared_weight import EPILOGUES

from .. import oracle
from ..catalogue import check
from ..fills import Fill
from ..float_fills import FLOAT_STYLES, SCALE_STYLES, SMALL_STYLES, FloatFill, FloatStyle
from ..layouts import LAYOUTS
from ..linear_cases import SPECIALS, LinearCase
from ..linear_strategies import FLOAT_DTYPES, OUTPUTS, epilogue_cases, linear_cases, scope, shapes_of_groups
from ..oracle_linear import FloatDtype
from ..scripts import holds
from ..strategies import LEADING, ROWS
from ..targets import Target
from .sizes import ROUND_AND_LARGE

_WIDE_DTYPES: tuple[FloatDtype, ...] = ("float32", "bfloat16")
"""Dtypes with the exponents of float32."""


def _int8(capabilities: Capabilities, _: object) -> bool:
    return "int8" in capabilities.activation_modes


def _bounded_int8(capabilities: Capabilities, _: object) -> bool:
    return _int8(capabilities, None) and capabilities.numerics == "bounded"


_NAMED_EPILOGUES = {name: name for name in EPILOGUES if name is not None}


def _int8_epilogue(capabilities: Capabilities, epilogue: Any) -> bool:
    return _int8(capabilities, None) and epilogue in capabilities.epilogues


@check("linear", applies=_int8)
def test_int8_matches_the_oracle(target: Target, bits: int) -> None:
    """Any weight, x, bias and epilogue, of any magnitude, NaN and infinity included."""
    cases = linear_cases(bits, scope(target.capabilities), "int8", target.profile.work)
    target.for_all(cases, lambda case: case.run(target.name))


@check("linear", applies=_int8)
def test_int8_of_any_layout_matches_the_oracle(target: Target, bits: int) -> None:
    """Every tensor argument in any strides."""
    cases = linear_cases(bits, scope(target.capabilities), "int8", target.profile.work // 4, any_layout=True)
    target.for_all(cases, lambda case: case.run(target.name))


@check("linear", applies=_int8)
def test_int8_every_tail(target: Target, bits: int) -> None:
    """Tails of M, N and K in all combinations, zero kinds in turn: no lost or added row, column or group."""
    within = scope(target.capabilities)
    kinds = cycle(within.zeros)
    cases = [
        LinearCase(within.weight(bits, n, k, group_size, next(kinds), poison=k), (m,), x=FloatFill(seed=m))
        for m, n, (group_size, k) in product(
            [rows for rows in ROWS if rows <= 17 or bits == 4],
            (1, 15, 17, 33),
            ((None, 3), (8, 9), (16, 31), (16, 65), (32, 97)),
        )
    ]
    target.run(cases)


@check("linear", applies=_int8)
def test_int8_every_shape_of_groups(target: Target, bits: int) -> None:
    """Every group size with whole and ragged groups, for one row, a few, and a tile of them, in each zero kind."""
    within = scope(target.capabilities)
    dtypes = cycle(within.scale_dtypes)
    cases = [
        LinearCase(within.weight(bits, 18, k, group_size, zero, next(dtypes), poison=k), (m,), x=FloatFill(seed=k))
        for (group_size, k), zero, m in product(shapes_of_groups(), within.zeros, (1, 5))
    ]
    target.run(cases)


@check("linear", applies=_int8)
def test_int8_every_output_tail(target: Target, bits: int) -> None:
    """Any N, in each zero kind."""
    within = scope(target.capabilities)
    zeros = within.zeros
    cases = [
        LinearCase(within.weight(bits, n, 40, 16, zero, codes=Fill("max")), (m,), bias=FloatFill(seed=n))
        for n, zero, m in product(OUTPUTS, zeros, (1, 2, 7))
    ]
    target.run(cases)


@check("linear", applies=_int8)
def test_int8_every_dtype(target: Target, bits: int) -> None:
    """Each dtype of x, of scales and of the bias, in each zero kind, with and without bias and epilogue."""
    within = scope(target.capabilities)
    biases = ((None, "float32"), *((FloatFill(seed=1), dtype) for dtype in FLOAT_DTYPES))
    cases = [
        LinearCase(within.weight(bits, 19, 50, 16, zero, dtype), (3,), x_dtype=x_dtype, bias=bias,
                   bias_dtype=bias_dtype, epilogue=epilogue)
        for zero, dtype, x_dtype, (bias, bias_dtype), epilogue in product(
            within.zeros, within.scale_dtypes, FLOAT_DTYPES, biases, within.epilogues
        )
    ]  # fmt: skip
    target.run(cases)


@check("linear", applies=_int8)
def test_int8_every_magnitude(target: Target, bits: int) -> None:
    """Rows of every style, in each dtype: zeros, groups around 2^-100, subnormals, the largest finite values."""
    within = scope(target.capabilities)
    cases = [
        LinearCase(within.weight(bits, 17, 72, 8, zero, scales=FloatFill(scales, 5)), (4,), x=FloatFill(style, 6),
                   x_dtype=x_dtype)
        for zero, style, x_dtype, scales in product(within.zeros, FLOAT_STYLES, FLOAT_DTYPES, SCALE_STYLES[:2])
    ]  # fmt: skip
    target.run(cases)


@check("linear", applies=_int8)
def test_int8_smallest_groups(target: Target, bits: int) -> None:
    """Groups of 2^-100 and more are quantized, groups below it are zero; neither touches its neighbours."""
    within = scope(target.capabilities)
    cases = [
        LinearCase(within.weight(bits, 17, 19, 8, zero, scales=FloatFill(factor=2.0**60), offsets=FloatFill()), (9,),
                   x=FloatFill(style, seed), x_dtype=dtype)
        for zero, style, dtype, seed in product(
            within.zeros, SMALL_STYLES, _WIDE_DTYPES, (1, 2)
        )
    ]  # fmt: skip
    # One value to a group, on the threshold and on its neighbours.
    values = tuple(2.0**-100 * (1 + step * 2.0**-24) for step in (-2, -1, 0, 2, 4))
    cases += [
        LinearCase(within.weight(bits, 3, 1, None, zero, scales=FloatFill(factor=2.0**60)), (5,),
                   x=FloatFill(values=tuple(sign * value for value in values)))
        for zero in within.zeros
        for sign in (1, -1)
    ]  # fmt: skip
    target.run(cases, always=True)


@check("linear", applies=_int8)
def test_int8_rounds_codes_half_to_even(target: Target, bits: int) -> None:
    """X * (127 / amax) on and beside a half, of either sign; the quotient is rounded before the product."""
    within = scope(target.capabilities)
    # Scales of 1 show the sums of the codes themselves. The largest value is that of a row, or of eight columns.
    row = within.weight(bits, 1, 8, None, codes=Fill("max"), scales=FloatFill("ends"))
    eight = within.weight(bits, 5, 96, 8, scales=FloatFill("ends"))
    styles: tuple[FloatStyle, ...] = ("ties", "near_ties")
    cases = [
        LinearCase(weight, (64,), x=FloatFill(style, seed))
        for weight, style, seed in product((row, eight), styles, range(5))
    ]
    target.run(cases, always=True)


@check("linear", applies=_int8)
def test_int8_takes_the_largest_magnitude(target: Target, bits: int) -> None:
    """A group's scale comes from its largest value, whichever sign and place it has."""
    within = scope(target.capabilities)
    weight = within.weight(bits, 3, 19, 8)
    cases = [
        LinearCase(weight, x=FloatFill(values=tuple(peak if k == place else 0.3 * (-1) ** k for k in range(19))))
        for place, peak in product(range(19), (5.0, -5.0))
    ]
    target.run(cases, always=True)


@check("linear", applies=_int8)
def test_int8_one_bad_row(target: Target, bits: int) -> None:
    """A NaN or an infinity makes all of its own row NaN and touches no other, also after a bias and an epilogue."""
    within = scope(target.capabilities)
    cases = [
        LinearCase(within.weight(bits, 18, 41, 8, zero), (m,), x=FloatFill(seed=seed), x_dtype=dtype, special=special,
                   bias=FloatFill() if seed % 2 else None, epilogue=within.epilogues[seed % len(within.epilogues)])
        for m, zero, dtype, special in product((1, 2, 5, 13), within.zeros, FLOAT_DTYPES, SPECIALS)
        for seed in range(max(2, len(within.epilogues)))
    ]  # fmt: skip
    target.run(cases)


@check("linear", applies=_bounded_int8)
def test_bounded_int8_one_bad_row(target: Target, bits: int) -> None:
    """Of bounded numerics: a NaN makes its row NaN and an infinity makes it not finite, wherever in it they are."""
    within = scope(target.capabilities)
    for m, zero, special in product((1, 2, 5, 13), within.zeros, SPECIALS):
        case = LinearCase(within.weight(bits, 18, 70, 32, zero), (m,), special=special)
        holds(target, _BAD_ROW, case=case, row=m // 2)


@check("linear", applies=_int8)
def test_int8_extreme_codes(target: Target, bits: int) -> None:
    """All codes at their ends against activations of 127 and -127, K in the thousands: nothing saturates on the way."""
    within = scope(target.capabilities)
    top = oracle.largest_code(bits)
    ends: tuple[Fill, ...] = (Fill("max"), Fill("zero"), Fill("ends", seed=2))
    cases = [
        LinearCase(within.weight(bits, 17, k, group_size, zero, codes=codes, zeros=zeros), (m,), x=x)
        for k, group_size in ((16, 8), (64, 32), (1030, 128), (5000, None))
        for zero in within.zeros
        for codes in ends
        for zeros in ((Fill("max"), Fill("zero")) if zero == "integer" else (Fill("zero"),))
        for m, x in ((1, FloatFill(values=(1.0,) * k)), (3, FloatFill("ends", 1)))
    ]
    # One group of 65536 columns: 127 * 255 * 65536 is just below 2**31.
    deep = 65536
    cases += [
        LinearCase(within.weight(bits, 2, deep, None, "integer", codes=Fill("max"), zeros=Fill(values=(0, top))), (m,),
                   x=FloatFill(values=(sign,) * (m * deep)))
        for m, sign in ((1, 1.0), (1, -1.0), (2, -1.0))
        if "integer" in within.zeros
    ]  # fmt: skip
    target.run(cases, always=True)


@check("linear", cases=_NAMED_EPILOGUES, applies=_int8_epilogue)
def test_int8_epilogue_of_every_value(target: Target, bits: int, case: str) -> None:
    """Each epilogue of values of any magnitude: bit for bit, -inf and NaN included."""
    target.run(epilogue_cases(bits, scope(target.capabilities), "int8", case), always=True)


@check("linear", applies=_int8)
def test_int8_many_groups(target: Target, bits: int) -> None:
    """Sums over thousands of columns and over hundreds of outputs, for few rows and many: groups in ascending order."""
    within = scope(target.capabilities)
    kinds = cycle(product(within.zeros, _WIDE_DTYPES))
    cases = []
    for m, n, k, group_size in ((1, 33, 4100, 32), (9, 18, 3000, 24), (17, 17, 4100, 128), (8, 33, 2056, 8),
                                (2, 450, 72, 32), (33, 400, 40, 16), (65, 65, 130, 64), (300, 33, 65, 32),
                                (2, 17, 8200, 8)):  # fmt: skip
        zero, x_dtype = next(kinds)
        cases.append(LinearCase(within.weight(bits, n, k, group_size, zero), (m,), x_dtype=x_dtype, bias=FloatFill()))
    target.run(cases, always=True)


@check("linear", applies=_int8)
def test_int8_many_rows_of_many_groups(target: Target, bits: int) -> None:
    """More groups than codes that a backend may decode at a time for many rows: none is lost, counted twice, or meets
    the factors of another.
    """
    within = scope(target.capabilities)
    cases = [
        LinearCase(
            within.weight(bits, 35, 3300, size, zero), (100,), x=FloatFill("groups", seed=size), bias=FloatFill()
        )
        for zero, size in product(within.zeros, (32, 136))
    ]
    target.run(cases)


@check("linear", applies=_int8)
def test_int8_many_rows_of_every_kind_of_group(target: Target, bits: int) -> None:
    """Rows around the tiles and panels of matrix units, by groups that fill their steps of columns or do not.

    Groups of several steps, with a shorter last one, and of more columns than are decoded at a time; outputs that make
    an odd number of tiles.
    """
    within = scope(target.capabilities)
    groups = ((8, 41), (32, 100), (64, 330), (96, 200), (128, 700), (160, 830), (None, 600))
    outputs, zeros, epilogues = cycle((1, 17, 33, 49, 70)), cycle(within.zeros), cycle(within.epilogues)
    cases = [
        LinearCase(within.weight(bits, next(outputs), k, size, next(zeros)), (m,), x=FloatFill("groups", seed=m),
                   bias=FloatFill(seed=k), epilogue=next(epilogues))
        for m, (size, k) in product((5, 12, 17, 31, 32, 33, 47, 129), groups)
    ]  # fmt: skip
    target.run(cases)


@check("linear", applies=_int8)
def test_int8_round_sizes_and_sizes_beyond_16_bits(target: Target, bits: int) -> None:
    """Whole multiples of whatever a backend cuts into, without a remainder, and more rows or outputs than 2**16."""
    within = scope(target.capabilities)
    cases = [LinearCase(within.weight(bits, n, k, size), (m,), bias=FloatFill()) for m, n, k, size in ROUND_AND_LARGE]
    target.run(cases, always=True)


@check("linear", applies=_int8)
def test_int8_long_rows_of_every_dtype(target: Target, bits: int) -> None:
    """Rows of thousands of columns in each dtype, with a NaN or an infinity somewhere in them, or none."""
    within = scope(target.capabilities)
    weight = within.weight(bits, 17, 4100, 128)
    cases = [LinearCase(weight, (3,), x=FloatFill(seed=1), x_dtype=dtype) for dtype in FLOAT_DTYPES]
    cases += [
        LinearCase(weight, (3,), x=FloatFill(seed=seed), x_dtype=dtype, special=special)
        for (seed, dtype), special in product(enumerate(FLOAT_DTYPES), SPECIALS)
    ]
    target.run(cases, always=True)


@check("linear", applies=_int8)
def test_int8_deep_rows(target: Target, bits: int) -> None:
    """Rows so long that a backend may take a few of them at a time: each result is in its place."""
    within = scope(target.capabilities)
    target.run([LinearCase(within.weight(bits, 3, 66_000, 2048), (25,), bias=FloatFill())], always=True)


@check("linear", applies=_int8)
def test_int8_weights_larger_than_caches(target: Target, bits: int) -> None:
    """Weights of more than 4 MiB, whose codes a kernel may meet in another order than those that stay in a cache."""
    within = scope(target.capabilities)
    n = 1301
    weight = within.weight(bits, n, (1 << 20) * 34 // bits // n, 128)
    target.run([LinearCase(weight, (m,), bias=FloatFill()) for m in (1, 3)], always=True)


@check("linear", applies=_int8)
def test_int8_each_argument_in_each_layout(target: Target, bits: int) -> None:
    """One argument strided, the others contiguous: x with leading dimensions, the weight's tensors, the bias."""
    within = scope(target.capabilities)
    zero = within.zeros[-1]
    plain, cases = within.weight(bits, 17, 41, 16, zero), []
    for layout in LAYOUTS:
        strided = within.weight(bits, 17, 41, 16, zero, layout=layout)
        cases += [LinearCase(strided, (5,)), LinearCase(plain, (5,), bias=FloatFill(), bias_layout=layout)]
        cases += [
            LinearCase(plain, leading, x_dtype=dtype, x_layout=layout)
            for leading in ((), (5,), (2, 3), (2, 1, 3), (1, 4, 1))
            for dtype in ("float32", "bfloat16")
        ]
        cases += [LinearCase(within.weight(bits, 3, 1), leading, x_layout=layout) for leading in ((5,), (2, 3))]
    target.run(cases, always=True)


@check("linear", applies=_int8)
def test_int8_leading_dimensions(target: Target, bits: int) -> None:
    """Every leading shape, those without rows included."""
    within = scope(target.capabilities)
    weight = within.weight(bits, 9, 17, 8)
    target.run([LinearCase(weight, leading, bias=FloatFill()) for leading in LEADING], always=True)


_BAD_ROW = """
result = case.call()
bad = result[row]
assert not bad.isfinite().any(), f"row {row} of x holds {case.special}, but the result's is {bad.tolist()}"
assert bad.isnan().all() or "nan" not in case.special, f"row {row} of x holds a NaN, but the result's is {bad.tolist()}"
"""
