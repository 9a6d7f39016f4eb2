"""docs/numerics.md, section 4: linear with int8 activations on backends of bounded numerics, within its bound."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import numpy as np

from bittensor.backend import Capabilities

from ..cases import call_on, snippet
from ..catalogue import check
from ..compare import as_rows, fail
from ..float_fills import CALM_STYLES, FloatFill, FloatStyle
from ..linear_cases import SPECIALS, BoundedLinearCase
from ..linear_strategies import FLOAT_DTYPES, OUTPUTS, scope, shapes_of_groups
from ..targets import Target


def _int8(capabilities: Capabilities, _: Any) -> bool:
    return "int8" in capabilities.activation_modes


def _bounded(capabilities: Capabilities, _: Any) -> bool:
    return _int8(capabilities, None) and capabilities.numerics == "bounded"


@check("linear", applies=_int8)
def test_int8_lies_within_the_bound(target: Target, bits: int) -> None:
    """Normal values, in each zero kind and dtype: also for backends that owe the bits, whose error it shows."""
    within = scope(target.capabilities)
    dtypes = cycle(FLOAT_DTYPES)
    cases = [
        BoundedLinearCase(within.weight(bits, 48, k, group_size, zero), (m,), x_dtype=next(dtypes), bias=FloatFill())
        for zero in within.zeros
        for m, k, group_size in ((1, 40, 8), (5, 256, 32), (32, 1100, 128), (9, 900, None))
    ]
    target.run(cases, always=True)


@check("linear", applies=_bounded)
def test_bounded_int8_every_shape_of_groups(target: Target, bits: int) -> None:
    """Every declared group size with whole and ragged groups, for one row and a few, in each zero kind."""
    within = scope(target.capabilities)
    dtypes = cycle(within.scale_dtypes)
    cases = [
        BoundedLinearCase(within.weight(bits, 18, k, size, zero, next(dtypes), poison=k), (m,), x=FloatFill(seed=k))
        for (size, k), zero, m in product(shapes_of_groups(), within.zeros, (1, 5))
    ]
    target.run(cases)


@check("linear", applies=_bounded)
def test_bounded_int8_every_tail(target: Target, bits: int) -> None:
    """Any M and N, in each zero kind and dtype of x in turn."""
    within = scope(target.capabilities)
    zeros, dtypes = cycle(within.zeros), cycle(FLOAT_DTYPES)
    cases = [
        BoundedLinearCase(within.weight(bits, n, 70, 16, next(zeros)), (m,), x_dtype=next(dtypes), bias=FloatFill())
        for n, m in (*product(OUTPUTS, (1, 2, 7)), *product((17,), (*range(1, 18), 33, 65)))
    ]
    target.run(cases)


@check("linear", applies=_bounded)
def test_bounded_int8_every_magnitude(target: Target, bits: int) -> None:
    """Rows of every style: equal magnitudes, magnitudes that change by group, tiny, subnormal, and the largest."""
    within = scope(target.capabilities)
    styles: tuple[FloatStyle, ...] = (*CALM_STYLES, "groups", "threshold", "tiny", "subnormal", "huge")
    for style, zero, dtype, size in product(styles, within.zeros, FLOAT_DTYPES, (8, 32)):
        case = BoundedLinearCase(within.weight(bits, 17, 72, size, zero), (4,), x=FloatFill(style, 6), x_dtype=dtype)
        case.run(target.name)
        target.examples += 1


@check("linear", applies=_bounded)
def test_bounded_int8_one_bad_row(target: Target, bits: int) -> None:
    """A NaN makes its row NaN, an infinity makes it not finite; the other rows lie within their bounds."""
    within = scope(target.capabilities)
    for m, zero, special in product((1, 2, 5, 13), within.zeros, SPECIALS):
        case = BoundedLinearCase(within.weight(bits, 18, 70, 32, zero), (m,), special=special)
        text = snippet(case, target.name)
        result = call_on(target.name, case, text)
        case.check(result, text)
        bad = as_rows(result, 18)[m // 2]
        if np.isfinite(bad).any() or (special == "nan" and not np.isnan(bad).all()):
            fail(f"row {m // 2} of x holds {special}, but the result's is {bad.tolist()}", text)
        target.examples += 1
