"""docs/numerics.md, section 6: the gradient of linear with respect to its input, within the derived bound."""

from __future__ import annotations

from itertools import cycle, product

import numpy as np
import pytest
import torch

import bittensor
from bittensor import UnsupportedOperationError

from ..catalogue import check
from ..compare import as_rows, check_floats, fail
from ..fills import Fill
from ..float_fills import CALM_STYLES, FloatFill
from ..gradient_cases import GradientCase
from ..layouts import LAYOUTS
from ..linear_cases import SPECIALS, TORCH_DTYPES
from ..linear_strategies import FLOAT_DTYPES, OUTPUTS, scope, shapes_of_groups
from ..oracle_linear import Floats
from ..strategies import LEADING
from ..targets import Target


@check("linear_input_grad")
def test_gradient_of_every_shape_of_groups(target: Target, bits: int) -> None:
    """Every group size with whole and ragged groups, in each zero kind."""
    within = scope(target.capabilities)
    dtypes = cycle(within.scale_dtypes)
    target.run([
        GradientCase(within.weight(bits, 18, k, group_size, zero, next(dtypes), poison=k), (m,))
        for (group_size, k), zero, m in product(shapes_of_groups(), within.zeros, (1, 5))
    ])  # fmt: skip


@check("linear_input_grad")
def test_gradient_of_every_tail(target: Target, bits: int) -> None:
    """Tails of M and N in each zero kind, sums that are cut into panels, and columns that are cut into spans."""
    within = scope(target.capabilities)
    kinds = cycle(within.zeros)
    cases = [
        GradientCase(within.weight(bits, n, 41, 16, zero, codes=Fill("max")), (m,))
        for n, zero, m in product(OUTPUTS, within.zeros, (1, 2, 7))
    ]
    cases += [
        GradientCase(within.weight(bits, 17, 41, 16, next(kinds)), (m,), dtype=dtype)
        for m, dtype in product((0, *range(1, 18), 33, 65), FLOAT_DTYPES)
    ]
    sizes = ((1, 4100, 33, 32), (9, 3000, 18, None), (17, 130, 600, 40), (200, 20, 300, 128))
    cases += [GradientCase(within.weight(bits, n, k, size, next(kinds)), (m,)) for m, n, k, size in sizes]
    target.run(cases)


@check("linear_input_grad")
def test_gradient_of_every_dtype(target: Target, bits: int) -> None:
    """Each dtype of dy and of scales, in each zero kind, and every calm style of values."""
    within = scope(target.capabilities)
    cases = [
        GradientCase(within.weight(bits, 19, 50, 16, zero, scale_dtype), (3,), FloatFill(style, 1), dtype)
        for zero, scale_dtype, dtype, style in product(
            within.zeros, within.scale_dtypes, FLOAT_DTYPES, (*CALM_STYLES, "tiny", "subnormal")
        )
    ]
    target.run(cases)


@check("linear_input_grad")
def test_gradient_of_small_integers_is_exact(target: Target, bits: int) -> None:
    """Integers far below 2^24: no step rounds, so the result is the integer in any order."""
    within = scope(target.capabilities)
    for zero, (group_size, k), m in product(within.zeros, ((None, 31), (8, 43), (32, 97)), (1, 4, 9)):
        weight = within.weight(
            bits, 35, k, group_size, zero, scales=FloatFill("ends"), offsets=FloatFill("integers", 2)
        )
        case = GradientCase(weight, (m,), FloatFill("integers", k))
        result = as_rows(case.call(target.name), k)
        if (wrong := result != case.expected.center).any():
            at = tuple(np.argwhere(wrong)[0].tolist())
            wanted = case.expected.center[at]
            fail(f"at {list(at)} expected exactly {wanted}, got {result[at]}", case.text(target.name))
        target.examples += 1


@check("linear_input_grad")
def test_gradient_bound_is_below_the_signal(target: Target, bits: int) -> None:
    """On larger gradients of normal values the bound is a small part of the result."""
    within = scope(target.capabilities)
    for zero, (n, size) in product(within.zeros, ((40, 8), (256, 32), (1100, None))):
        case = GradientCase(within.weight(bits, n, 48, size, zero), (16,))
        signal = float(np.median(np.abs(case.expected.center)))
        if not float(np.median(case.expected.bound)) < signal / 50 or not case.expected.comparable.all():
            fail(f"the bound is {np.median(case.expected.bound):.3g}, the result {signal:.3g}", case.text(target.name))
        case.run(target.name)
        target.examples += 1


@check("linear_input_grad")
def test_gradient_keeps_bad_rows_apart(target: Target, bits: int) -> None:
    """A NaN makes its row NaN, an infinity makes it not finite; the other rows lie within their bounds."""
    within = scope(target.capabilities)
    for m, zero, dtype, special in product((1, 5, 13), within.zeros, FLOAT_DTYPES, SPECIALS):
        case = GradientCase(within.weight(bits, 18, 41, 8, zero), (m,), dtype=dtype, special=special)
        case.run(target.name)
        bad = as_rows(case.call(target.name), 41)[m // 2]
        if special == "nan" and not np.isnan(bad).all():
            fail(f"row {m // 2} of dy holds a NaN, but the result's is {bad.tolist()}", case.text(target.name))
        target.examples += 1


@check("linear_input_grad")
def test_gradient_in_each_layout(target: Target, bits: int) -> None:
    """Strided dy, with leading dimensions."""
    weight = scope(target.capabilities).weight(bits, 17, 41, 16)
    cases = [
        GradientCase(weight, leading, dtype=dtype, layout=layout)
        for layout in LAYOUTS
        for leading in ((), (5,), (2, 3))
        for dtype in ("float32", "bfloat16")
    ]
    target.run([*cases, *(GradientCase(weight, leading) for leading in LEADING)], always=True)


@check("linear_input_grad", applies=lambda capabilities, _: capabilities.numerics == "exact")
def test_gradient_does_not_depend_on_the_batch(target: Target, bits: int) -> None:
    """A row alone, in parts of a batch, and on 1, 2 and 3 threads has the same bits."""
    within = scope(target.capabilities)
    threads = torch.get_num_threads()
    try:
        for zero, (m, n, k, size) in product(within.zeros, ((17, 65, 33, 16), (40, 300, 130, 64))):
            case = GradientCase(within.weight(bits, n, k, size, zero), (m,))
            torch.set_num_threads(1)
            whole = as_rows(case.call(target.name), k)
            for part in (1, 6, m // 2 + 1):
                pieces = torch.split(case.placed.tensor, part)
                parts = [as_rows(case.call(target.name, piece), k) for piece in pieces]
                _check_same(target, case, np.concatenate(parts), whole, f"parts of {part} rows")
            for count in (2, 3):
                torch.set_num_threads(count)
                _check_same(target, case, as_rows(case.call(target.name), k), whole, f"{count} threads")
    finally:
        torch.set_num_threads(threads)


@check("linear_input_grad")
def test_gradient_reaches_x(target: Target, bits: int) -> None:
    """`bittensor.linear` backward gives this operation's result, times the derivative of the epilogue."""
    within = scope(target.capabilities)
    case = GradientCase(within.weight(bits, 17, 41, 16), (5,))
    mode = sorted(target.capabilities.activation_modes)[0]
    x, dy = torch.from_numpy(FloatFill(seed=6).floats((5, 41))).requires_grad_(), case.placed.tensor
    with bittensor.use_backend(target.name):
        bittensor.linear(x, case.weight.quantized(), activation_mode=mode).backward(dy)  # type: ignore[no-untyped-call]
    assert x.grad is not None
    _check_same(target, case, as_rows(x.grad, 41), as_rows(case.call(target.name), 41), "x.grad of linear")


@check("linear_input_grad", undeclared=True)
def test_undeclared_gradient_is_refused(target: Target, bits: int) -> None:
    """UnsupportedOperationError from a backend that declares linear, but not its gradient."""
    if "linear_input_grad" not in target.capabilities.operations:
        case = GradientCase(scope(target.capabilities).weight(bits, 3, 9, 8))
        held = case.weight.quantized().canonical()
        with pytest.raises(UnsupportedOperationError):
            target.backend.linear_input_grad(case.placed.tensor, held)


def _check_same(target: Target, case: GradientCase, actual: Floats, expected: Floats, what: str) -> None:
    dtype = TORCH_DTYPES["float32"]
    text = case.text(target.name)
    check_floats(torch.from_numpy(actual), expected, expected.shape, dtype, what=what, snippet=text)
    target.examples += 1
