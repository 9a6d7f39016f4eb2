"""docs/numerics.md, section 6: the gradient of linear with respect to its input, within the derived bound."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, product
from typing import Any

import numpy as np
import torch

from bittensor.backend import Capabilities
from bittensor.prepared_weight import EPILOGUES

from ..cases import Snippet
from ..catalogue import check
from ..compare import fail
from ..fills import Fill
from ..float_fills import CALM_STYLES, FloatFill
from ..gradient_cases import GradientCase
from ..layouts import LAYOUTS
from ..linear_cases import SPECIALS, LinearCase, Mode
from ..linear_strategies import FLOAT_DTYPES, OUTPUTS, scope, shapes_of_groups
from ..scripts import NEW_MEMORY, holds
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
    sizes = ((1, 4100, 33, 32), (2, 40, 300, 128), (9, 3000, 18, None), (17, 130, 600, 40), (200, 20, 300, 128))
    cases += [GradientCase(within.weight(bits, n, k, size, next(kinds)), (m,)) for m, n, k, size in sizes]
    target.run(cases)
    # More rows than 2**16, whole tiles of any size; half dtypes are rounded once, at the end of all panels.
    round_sizes = ((70_000, 2, 9, 8), (64, 64, 256, 64), (32, 256, 64, 32))
    cases = [GradientCase(within.weight(bits, n, k, size), (m,)) for m, n, k, size in round_sizes]
    cases += [GradientCase(within.weight(bits, 600, 70, 16), (5,), dtype=dtype) for dtype in FLOAT_DTYPES]
    target.run(cases, always=True)


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
        holds(target, _EXACT, case=GradientCase(weight, (m,), FloatFill("integers", k)))


@check("linear_input_grad")
def test_gradient_bound_is_below_the_signal(target: Target, bits: int) -> None:
    """On larger gradients of normal values the bound is a small part of the result."""
    within = scope(target.capabilities)
    for zero, (n, size) in product(within.zeros, ((40, 8), (256, 32), (1100, None))):
        case = GradientCase(within.weight(bits, n, 48, size, zero), (16,))
        signal = float(np.median(np.abs(case.expected.center)))
        if not float(np.median(case.expected.bound)) < signal / 50 or not case.expected.comparable.all():
            fail(
                f"the bound is {np.median(case.expected.bound):.3g}, the result {signal:.3g}",
                Snippet(case, target.name),
            )
        case.run(target.name)
        target.examples += 1


@check("linear_input_grad")
def test_gradient_keeps_bad_rows_apart(target: Target, bits: int) -> None:
    """A NaN makes its row NaN, an infinity infinite as the weights' signs say; other rows lie within their bounds."""
    within = scope(target.capabilities)
    for m, zero, dtype, special in product((1, 5, 13), within.zeros, FLOAT_DTYPES, SPECIALS):
        case = GradientCase(within.weight(bits, 18, 41, 8, zero), (m,), dtype=dtype, special=special)
        case.run(target.name)
        holds(target, _BAD_ROW, case=case, row=m // 2)


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
            for part in (1, 6, m // 2 + 1):
                holds(target, _PARTS, case=case, part=part)
            holds(target, _THREADS, case=case)
        # So few columns that only the rows can be shared out.
        holds(target, _THREADS, case=GradientCase(within.weight(bits, 1400, 16, 16, within.zeros[0]), (50,)))
    finally:
        torch.set_num_threads(threads)


@check("linear_input_grad")
def test_gradient_results_are_new_memory(target: Target, bits: int) -> None:
    """A later call does not change what an earlier one returned, and does not share its memory."""
    for m, n, k in ((1, 17, 41), (5, 33, 17), (512, 9, 64)):
        case = GradientCase(scope(target.capabilities).weight(bits, n, k, 8), (m,))
        holds(target, NEW_MEMORY, case=case, other=replace(case, dy=FloatFill(seed=99)))


@check("linear_input_grad")
def test_concurrent_gradients_do_not_disturb_each_other(target: Target, bits: int) -> None:
    """Calls from four Python threads at once: no scratch memory is shared between them."""
    for m, n, k, size in ((5, 65, 33, 16), (40, 300, 130, 64), (3, 900, 500, 128)):
        case = GradientCase(scope(target.capabilities).weight(bits, n, k, size), (m,))
        holds(target, _CONCURRENT, case=case, backend=target.name)


@check("linear_input_grad")
def test_gradient_refuses_the_layout_of_another(target: Target, bits: int) -> None:
    """A prepared weight with another layout's name is an error, and never computed with."""
    case = GradientCase(scope(target.capabilities).weight(bits, 17, 41, 8))
    holds(target, _OTHER_LAYOUT, case=case)


_NAMED_EPILOGUES = {str(name).lower(): name for name in EPILOGUES}
_MODES: dict[str, Mode] = {"int8": "int8", "float": "float"}


def _has_gradients(capabilities: Capabilities, epilogue: Any) -> bool:
    """Whether there is a gradient of x: by the backend, or by torch from the dequantized weight."""
    return epilogue in capabilities.epilogues


def _passes_gradients(capabilities: Capabilities, mode: Any) -> bool:
    return mode in capabilities.activation_modes and _has_gradients(capabilities, None)


@check("linear", cases=_NAMED_EPILOGUES, applies=_has_gradients)
def test_linear_passes_gradients(target: Target, bits: int, case: str | None) -> None:
    """`bittensor.linear` backward, in each mode: x and the bias get what section 6 says, whoever computes it."""
    within = scope(target.capabilities)
    for mode, zero in product(sorted(target.capabilities.activation_modes), within.zeros):
        for dtype in FLOAT_DTYPES:
            weight = within.weight(bits, 17, 41, 16, zero)
            linear = LinearCase(weight, (5,), mode, x_dtype=dtype, bias=FloatFill(seed=1), epilogue=case)  # type: ignore[arg-type]
            holds(target, _BACKWARD, case=linear, exact=target.is_exact)


@check("linear", cases=_MODES, applies=_passes_gradients)
def test_linear_passes_gradients_of_every_form(target: Target, bits: int, case: Mode) -> None:
    """Leading dimensions, no bias, only a bias that wants a gradient, and a dy without strides, as `sum` makes it."""
    weight = scope(target.capabilities).weight(bits, 17, 41, 16)
    # Whether there is a bias, and which of x and the bias want a gradient.
    forms = ((False, "x"), (True, "x"), (True, "bias"), (True, "both"))
    for leading, (biased, wanted), spread in product(((), (5,), (2, 3), (2, 1, 3)), forms, (True, False)):
        linear = LinearCase(weight, leading, case, bias=FloatFill(seed=1))
        holds(target, _EVERY_FORM, case=linear, biased=biased, wanted=wanted, spread=spread)


_EXACT = """
same(case.call().reshape(-1, case.weight.k).double(), case.expected.center, within=0.25)  # they are integers
"""
_BAD_ROW = """
bad, dy = case.call()[row].float(), case.tensors()["dy"][row]
values = torch.from_numpy(oracle_linear.dequantize(case.weight.weight))
# One value is not finite: its product decides, +-infinity, or NaN where the weight is 0.
wanted = dy[~dy.isfinite()].float() * values[~dy.isfinite()][0]
same(bad, wanted)
"""
_PARTS = """
same(torch.cat([case.call(rows) for rows in case.tensors()["dy"].split(part)]), case.call())
"""
_THREADS = """
torch.set_num_threads(1)
results = [case.call()]
for count in (2, 3):
    torch.set_num_threads(count)
    results.append(case.call())  # kept, so that no call finds the values of another in its memory
    same(results[-1], results[0])
"""
_CONCURRENT = """
from concurrent.futures import ThreadPoolExecutor
cases = [replace(case, dy=FloatFill(seed=seed)) for seed in range(4)]
alone = [each.call() for each in cases]
def repeat(each):
    with bittensor.use_backend(backend):
        return [each.call() for _ in range(2)]
with ThreadPoolExecutor(4) as pool:
    results = list(pool.map(repeat, cases))
for each, expected, calls in zip(cases, alone, results):
    for actual in calls:
        same(actual, expected, within=2 * float(each.expected.reach.max()))
"""
_OTHER_LAYOUT = """
backend, dy = bittensor.current_backend(), case.tensors()["dy"]
own = backend.prepare(case.weight.quantized())
for foreign in (replace(own, layout=f"{own.layout}x"), Elsewhere().prepare(case.weight.quantized())):
    with refused(ValueError):
        backend.linear_input_grad(dy, foreign)
"""
_EVERY_FORM = """
tensors = case.tensors()
x = tensors["x"].clone().requires_grad_(wanted != "bias")
bias = tensors["bias"].clone().requires_grad_(wanted != "x") if biased else None
y = case.call(x=x, bias=bias)
dy = torch.ones(()).expand(y.shape) if spread else torch.from_numpy(FloatFill(seed=6).floats(tuple(y.shape)))
y.backward(dy)
rows = dy.reshape(-1, case.weight.n).numpy()
dx, dbias = allowed_gradients(case, y.detach().numpy().reshape(rows.shape), rows, False)
if wanted != "bias":
    same(x.grad.double().reshape(dx.center.shape), dx.center, dx.reach)
if wanted != "x":
    same(bias.grad.double(), dbias.center, dbias.reach)
"""
_BACKWARD = """
tensors = case.tensors()
x, bias = (tensors[name].clone().requires_grad_() for name in ("x", "bias"))
y = case.call(x=x, bias=bias)
dy = torch.from_numpy(FloatFill(seed=6).floats(tuple(y.shape), case.x_dtype)).to(y.dtype)
y.backward(dy)
dx, dbias = allowed_gradients(case, y.detach().float().numpy(), dy.float().numpy(), exact)
same(x.grad.double().where(torch.from_numpy(dx.comparable), 0), np.where(dx.comparable, dx.center, 0), dx.reach)
same(bias.grad.double(), dbias.center, dbias.reach)
"""
