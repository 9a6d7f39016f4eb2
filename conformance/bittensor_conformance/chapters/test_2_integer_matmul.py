"""docs/numerics.md, section 2: integer matmul, against the oracle."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from .. import oracle
from ..cases import MatmulCase, ScaleFill
from ..catalogue import check
from ..fills import BiasFill, Fill
from ..layouts import LAYOUTS
from ..strategies import COLUMNS, LEADING, OUTPUTS, ROWS, SCALES, matmul_cases
from ..targets import Target
from .sizes import ROUND_AND_LARGE

_SHORT = (1, 7, 8, 9, 15, 16, 17, 33)
_DEEP = (1, 3, 15, 16, 17, 33, 64, 65, 129, 257)


@check("packed_matmul")
def test_accumulator_matches_the_oracle(target: Target, bits: int) -> None:
    """``out_dtype=torch.int32`` is the exact sum."""
    cases = matmul_cases(bits, target.profile.work, "accumulator")
    target.for_all(cases, lambda case: case.run(target.name))


@check("packed_matmul")
def test_saturated_codes_match_the_oracle(target: Target, bits: int) -> None:
    """Without a scale: the sum, clamped to a code and packed along N."""
    cases = matmul_cases(bits, target.profile.work, "saturated")
    target.for_all(cases, lambda case: case.run(target.name))


@check("packed_matmul")
def test_scaled_codes_match_the_oracle(target: Target, bits: int) -> None:
    """With a scale in any form: one product in float32, rounded half to even, shifted, clamped, packed."""
    cases = matmul_cases(bits, target.profile.work, "scaled")
    target.for_all(cases, lambda case: case.run(target.name))


@check("packed_matmul")
def test_any_layout_matches_the_oracle(target: Target, bits: int) -> None:
    """Every tensor argument in any strides."""
    cases = matmul_cases(bits, target.profile.work // 4, "scaled", any_layout=True)
    target.for_all(cases, lambda case: case.run(target.name))


@check("packed_matmul")
def test_each_argument_in_each_layout(target: Target, bits: int) -> None:
    """One argument strided, the others contiguous: x as codes and as words, weight, bias, scale."""
    cases = []
    for layout in LAYOUTS:
        for leading in ((5,), (2, 3), (2, 1, 3)):
            plain = MatmulCase(bits, 33, 17, leading, bias=BiasFill("balance"), x_zero=1, accumulator=True)
            cases += [
                replace(plain, x_layout=layout),
                replace(plain, x_layout=layout, packed_x=True),
                replace(plain, weight_layout=layout),
                replace(plain, bias_layout=layout),
                replace(plain, bias=BiasFill("uint8"), bias_layout=layout),
            ]
        scale = ScaleFill("per_output", SCALES[:8], layout=layout)
        cases += [MatmulCase(bits, 33, 17, (5,), bias=BiasFill("balance"), scale=scale)]
    target.run(cases, always=True)


@check("packed_matmul")
def test_every_tail(target: Target, bits: int) -> None:
    """Tails of M, N and K in all combinations, with zero points that make a lost or added column visible."""
    top = oracle.largest_code(bits)
    cases = [
        MatmulCase(
            bits, k, n, (m,), Fill(seed=m), Fill(seed=n), x_zero=top, weight_zero=1, accumulator=True, poison=k,
            packed_x=(m + n + k) % 2 == 0,
        )
        for m, n, k in product(ROWS, _SHORT, _DEEP)
    ]  # fmt: skip
    target.run(cases)


@check("packed_matmul")
def test_every_output_tail(target: Target, bits: int) -> None:
    """Any N: the packed result's unused bits are 0, also where a zero point would fill them."""
    cases = [
        MatmulCase(bits, 5, n, (m,), Fill("max"), Fill("max"), scale=scale, out_zero=out_zero)
        for n, m in product(OUTPUTS, (1, 2, 5))
        for scale, out_zero in ((None, 0), (ScaleFill("scalar", (0.0,)), oracle.largest_code(bits)))
    ]
    target.run(cases)


@check("packed_matmul")
def test_extreme_codes(target: Target, bits: int) -> None:
    """All codes 0 or the largest, zero points at the ends: no intermediate of 16 bits may saturate."""
    top = oracle.largest_code(bits)
    ends: tuple[Fill, ...] = (Fill("max"), Fill("zero"), Fill("ends", seed=2))
    cases = [
        MatmulCase(bits, k, 9, (m,), x, weight, x_zero=x_zero, weight_zero=weight_zero, accumulator=True)
        for k, m in product((2, 16, 33, 128, 257, 513, 1000), (1, 4, 7))
        for x, weight in product(ends, ends)
        for x_zero, weight_zero in product((0, top), (0, top))
    ]
    target.run(cases)


@check("packed_matmul")
def test_every_zero_point(target: Target, bits: int) -> None:
    """All zero points of both operands; for 8 bits all of one against a few of the other."""
    top = oracle.largest_code(bits)
    few = {0, 1, top // 2, (top + 1) // 2, top} if bits > 4 else range(top + 1)
    pairs = sorted({*product(range(top + 1), few), *product(few, range(top + 1))})
    cases = [
        MatmulCase(bits, 37, 6, (3,), Fill(seed=z), Fill(seed=w), x_zero=z, weight_zero=w, accumulator=True, poison=z)
        for z, w in pairs
    ]
    target.run(cases)


@check("packed_matmul")
def test_accumulator_at_the_int32_limit(target: Target, bits: int) -> None:
    """Sums and biases that reach 2**31 - 1 exactly, and a K beyond 2**16, are computed, not refused and not wrapped."""
    top = oracle.largest_code(bits)
    deepest = min(oracle.INT32_MAX // top**2, 70_001)
    center = (top + 1) // 2
    deep_centered = min(oracle.INT32_MAX // max(center, top - center) ** 2, 140_000)
    cases = []
    for packed in (False, True):
        cases += [
            MatmulCase(bits, deepest, 2, (2,), Fill("max"), Fill("max"), accumulator=True, packed_x=packed),
            MatmulCase(
                bits, deepest, 2, (2,), Fill("max"), Fill("max"), BiasFill("limit"), accumulator=True, packed_x=packed
            ),
            # The uncorrected sum of products lies beyond int32 here; only the centered one fits.
            MatmulCase(
                bits, deep_centered, 2, (1,), Fill("ends"), Fill("max"), x_zero=center, weight_zero=center,
                accumulator=True, packed_x=packed,
            ),
        ]  # fmt: skip
    limits = (oracle.INT32_MAX, -oracle.INT32_MAX, 0, oracle.INT32_MAX)
    cases += [
        MatmulCase(bits, 0, 4, (2,), bias=BiasFill(values=limits), accumulator=True),
        MatmulCase(bits, 0, 4, (2,), bias=BiasFill(values=limits)),
        MatmulCase(bits, 0, 4, (2,), bias=BiasFill(values=limits), scale=ScaleFill("scalar", (2.0**-24,))),
    ]
    target.run(cases, always=True)


@check("packed_matmul")
def test_rounding(target: Target, bits: int) -> None:
    """Every accumulator of a range of small ones under scales that make ties: half to even, either sign."""
    accumulators = tuple(range(-1100, 1101))
    cases = [
        MatmulCase(bits, 0, len(accumulators), (1,), bias=BiasFill(values=accumulators), scale=scale, out_zero=out_zero)
        for scale in (ScaleFill("one", (value,)) for value in (0.5, 0.25, 0.1, 0.3, 0.7, -0.5, -0.1, 1.5, 1 / 3, 0.9))
        for out_zero in sorted({0, 1, oracle.largest_code(bits) // 2 + 1})
    ]
    target.run(cases, always=True)


@check("packed_matmul")
def test_rounding_of_large_accumulators(target: Target, bits: int) -> None:
    """Beyond 2**24 the accumulator is rounded to float32 before the product, half to even."""
    cases = [
        MatmulCase(bits, 0, 33, (1,), bias=BiasFill(values=tuple(center + d for d in range(-16, 17))), scale=scale)
        for exponent in range(22, 31)
        for half in (0.5, 1.5, 2.5)
        for center in (2**exponent, 2**exponent + 2 ** (exponent - 1))
        for scale in (ScaleFill("scalar", (half / center,)), ScaleFill("scalar", (half * 2.0**-exponent,)))
    ]
    target.run(cases, always=True)


@check("packed_matmul")
def test_scale_forms(target: Target, bits: int) -> None:
    """One scale for all or one per output, where M, N and the scale's length can be mistaken for one another."""
    values = (0.5, 0.25, -0.5, 0.1, 1.0, 0.125, 0.7, -0.25, 0.3)
    cases = [
        MatmulCase(bits, 9, n, leading, bias=BiasFill("balance", seed=n), scale=ScaleFill(form, values[:n]), out_zero=1)
        for n, leading in product((1, 2, 5, 9), ((1,), (2,), (5,), (9,), (9, 9), ()))
        for form in ("float", "scalar", "one", "per_output", "lazily_negated")
    ]
    target.run(cases, always=True)


@check("packed_matmul")
def test_small_scales(target: Target, bits: int) -> None:
    """Scales far below 1 keep all of their digits, in each form: large accumulators come to small codes."""
    accumulators = tuple(
        sign * (2**exponent + step) for exponent in (20, 25, 30) for step in (0, 77) for sign in (1, -1)
    )
    values = (2.0**-30, 1.5 * 2.0**-30, 2.5 * 2.0**-25, 1.2345678e-6, -1.4999999e-6, 3.3e-8)
    cases = [
        MatmulCase(
            bits, 0, len(accumulators), (1,), bias=BiasFill(values=accumulators), scale=ScaleFill(form, (value,))
        )
        for value in values
        for form in ("float", "scalar", "one")
    ]
    target.run(cases, always=True)


@check("packed_matmul")
def test_deep_rows(target: Target, bits: int) -> None:
    """Rows so long that a backend may take a few of them at a time: each result is in its place."""
    top = oracle.largest_code(bits)
    cases = [
        MatmulCase(bits, 30_000, 3, (m,), Fill(seed=m), x_zero=top, weight_zero=1, accumulator=True, packed_x=packed)
        for m, packed in ((5, False), (38, True), (70, False))
    ]
    target.run(cases, always=True)


@check("packed_matmul")
def test_bias_in_every_batch(target: Target, bits: int) -> None:
    """The bias reaches each row of each leading shape, whichever dtype it has."""
    cases = [
        MatmulCase(bits, 16, 9, leading, bias=BiasFill(style, seed=3), accumulator=True)
        for leading in LEADING
        for style in ("uint8", "small", "large", "limit", "balance")
    ]
    target.run(cases)


@check("packed_matmul")
def test_round_sizes_and_sizes_beyond_16_bits(target: Target, bits: int) -> None:
    """Whole multiples of whatever a backend cuts into, without a remainder, and more rows or outputs than 2**16."""
    cases = [
        MatmulCase(bits, k, n, (m,), x_zero=1, weight_zero=1, accumulator=True, packed_x=bool(m % 2))
        for m, n, k, _ in ROUND_AND_LARGE
    ]
    target.run(cases, always=True)


@check("packed_matmul")
def test_empty(target: Target, bits: int) -> None:
    """M, N or K of 0, with and without bias and scale: the right shape, and the bias alone where K is 0."""
    cases = [
        MatmulCase(bits, k, n, leading, bias=bias, scale=scale, packed_x=packed, accumulator=accumulator)
        for k, n, leading in product((0, 5), (0, 3), ((0,), (2,), (2, 0), (0, 3), ()))
        if 0 in (k, n, *leading)
        for bias in (None, BiasFill("uint8"), BiasFill("large"))
        for scale, accumulator in ((None, False), (None, True), (ScaleFill("per_output", (0.5, 1.0)), False))
        for packed in (False, True)
    ]
    target.run(cases, always=True)


@check("packed_matmul")
def test_unused_bits_of_x_do_not_matter(target: Target, bits: int) -> None:
    """Garbage above the last code of a packed row of x changes nothing, and none of it meets the weight's garbage."""
    cases = [
        MatmulCase(bits, k, 5, (3,), x_zero=1, packed_x=True, poison=k, weight=Fill("max"), accumulator=True)
        for k in COLUMNS
    ]
    target.run(cases, always=True)


@check("packed_matmul")
def test_unused_bits_of_the_weight_do_not_matter(target: Target, bits: int) -> None:
    """Garbage above the last code of a row of the weight changes nothing, at any K and zero point."""
    cases = [
        MatmulCase(bits, k, 5, (3,), x, x_zero=x_zero, weight_zero=1, poison=k + 1, accumulator=True)
        for k in COLUMNS
        for x, x_zero in ((Fill(), 0), (Fill("zero"), oracle.largest_code(bits)))
    ]
    target.run(cases, always=True)


@check("packed_matmul")
def test_weights_larger_than_caches(target: Target, bits: int) -> None:
    """Weights of more than 4 MiB, whose words a kernel may meet in another order than those that stay in a cache."""
    n = 1301
    k = (1 << 20) * 34 // bits // n
    cases = [
        MatmulCase(bits, k, n, (m,), x_zero=1, weight_zero=1, accumulator=accumulator, poison=m)
        for m, accumulator in ((1, True), (1, False), (3, True))
    ]
    target.run(cases, always=True)
