"""docs/numerics.md, sections 4 and 5: what must hold between results, in both modes.

These checks use no oracle. Of exact numerics they ask for the same bits, which in the mode "float", where an oracle
only gives bounds, is what makes results the same whatever the batch, the threads and the memory. Of bounded numerics
they ask for results that are no further apart than two values within the bound can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch

from bittensor.backend import Capabilities

from ..cases import Snippet, check_unmodified
from ..catalogue import check
from ..float_fills import FloatFill
from ..layouts import LAYOUTS, OVERLAPPING
from ..linear_cases import LinearCase, Mode
from ..linear_strategies import FLOAT_DTYPES, scope
from ..scripts import NEW_MEMORY, holds
from ..targets import Target

_MODES: Mapping[str, Mode] = {"int8": "int8", "float": "float"}
_SIZES = ((7, 17, 65, 16), (17, 33, 130, 32), (33, 5, 23, None), (66, 49, 43, 8), (9, 17, 1100, 128))


def _declared(capabilities: Capabilities, mode: Any) -> bool:
    return mode in capabilities.activation_modes


def _exact(capabilities: Capabilities, mode: Any) -> bool:
    return _declared(capabilities, mode) and capabilities.numerics == "exact"


def _cases(target: Target, bits: int, mode: Mode) -> list[LinearCase]:
    """Linears with tails in every dimension, in each zero kind and dtype of x."""
    within = scope(target.capabilities)
    zeros = within.zeros
    return [
        LinearCase(within.weight(bits, n, k, size, zeros[i % len(zeros)]), (m,), mode, FloatFill(seed=m), dtype,
                   bias=FloatFill(seed=n))
        for i, ((m, n, k, size), dtype) in enumerate(product(_SIZES, FLOAT_DTYPES))
    ]  # fmt: skip


def _compare(target: Target, body: str, case: LinearCase, **names: Any) -> None:
    """Run a script that ends by comparing `actual` with `expected`, in which `within` is what both may differ by."""
    within = 0.0
    if not target.is_exact:  # both are approximations of the same numbers
        allowed = case.allowed
        within = 2 * float(allowed.reach[allowed.comparable].max(initial=0.0))
    holds(target, body + "\nsame(actual, expected, within)", case=case, **names, within=within)


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_permuted_rows(target: Target, bits: int, case: Mode) -> None:
    """A row's result does not depend on its position or its neighbours."""
    for each in _cases(target, bits, case):
        order = np.random.default_rng(each.weight.k).permutation(each.leading[0]).tolist()
        _compare(target, _PERMUTED, each, order=order)


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_equal_rows(target: Target, bits: int, case: Mode) -> None:
    """The same row at every position of a batch of 35 gives the result of the row alone."""
    for each in _cases(target, bits, case):
        _compare(target, _EQUAL_ROWS, each)


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_split_batch(target: Target, bits: int, case: Mode) -> None:
    """A batch computed in parts, or row by row, is the batch computed at once."""
    for each in _cases(target, bits, case):
        for part in (1, 4, 6, each.leading[0] // 2 + 1):
            _compare(target, _PARTS, each, part=part)


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_split_outputs(target: Target, bits: int, case: Mode) -> None:
    """A weight cut along N gives the columns of the whole."""
    for each in _cases(target, bits, case):
        for at in sorted({1, each.weight.n // 2, each.weight.n - 1}):
            _compare(target, _HALVES, each, at=at)


@check("linear", cases=_MODES, applies=_exact)
def test_linear_of_scaled_rows(target: Target, bits: int, case: Mode) -> None:
    """X times a power of two gives the result times it, as long as nothing leaves the normal range."""
    for each in _cases(target, bits, case):
        for exponent in (-40, -1, 3, 20) if each.x_dtype != "float16" else ():
            _compare(target, _SCALED, each, exponent=exponent)


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_zero_rows(target: Target, bits: int, case: Mode) -> None:
    """Rows of zeros give the bias, rounded to the dtype, or zeros."""
    for each in _cases(target, bits, case):
        zeros = replace(each, x=FloatFill("zero"))
        for bias in (each.bias, None):
            replace(zeros, bias=bias).run(target.name)
            target.examples += 1


@check("linear", cases=_MODES, applies=_declared)
def test_linear_keeps_bad_rows_apart(target: Target, bits: int, case: Mode) -> None:
    """A NaN or an infinity in one row leaves every other row as it was, at every position of the row."""
    for each in _cases(target, bits, case)[::2]:
        for row, special in product(sorted({0, 1, 3, 4, 5, each.leading[0] - 1}), ("nan", "inf")):
            _compare(target, _BAD_ROW, each, row=row, column=(row * 7) % each.weight.k, special=special)


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_every_nan(target: Target, bits: int, case: Mode) -> None:
    """NaN of either sign, signalling or not, with a payload of ones, in x and in the bias: NaN in the result."""
    for dtype in FLOAT_DTYPES:
        weight = scope(target.capabilities).weight(bits, 6, 40, 8)
        holds(target, _EVERY_NAN, case=LinearCase(weight, (6,), case, x_dtype=dtype))


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_what_x_holds_now(target: Target, bits: int, case: Mode) -> None:
    """Values that are written to x between two calls count: nothing of x is kept by where it lies."""
    for each in _cases(target, bits, case)[::2]:
        _compare(target, _WRITTEN, each)


@check("linear", cases=_MODES, applies=_declared)
def test_linear_leaves_the_state_of_torch(target: Target, bits: int, case: Mode) -> None:
    """The number of threads, the generator, the modes and defaults of torch are as they were."""
    small = LinearCase(scope(target.capabilities).weight(bits, 3, 16), (1,), case)
    threads = torch.get_num_threads()
    try:
        for each in (small, _cases(target, bits, case)[0], *_large(target, bits, case)[:2]):
            holds(target, _STATE, case=each)
    finally:
        torch.set_num_threads(threads)


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_strided_inputs(target: Target, bits: int, case: Mode) -> None:
    """The same values in other places of memory give the same bits; no byte of them or between them changes."""
    for each in _cases(target, bits, case):
        for layout in sorted(set(LAYOUTS) - OVERLAPPING):
            weight = replace(each.weight, layout=layout, poison=1)
            moved = replace(each, weight=weight, x_layout=layout, bias_layout=layout)
            _compare(target, "actual, expected = moved.call(), case.call()", each, moved=moved)
            check_unmodified(moved.inputs | moved.weight.placed, Snippet(moved, target.name))


@check("linear", cases=_MODES, applies=_declared)
def test_linear_on_any_number_of_threads(target: Target, bits: int, case: Mode) -> None:
    """1, 2, 3 and 8 threads give the same bits, for shapes that split by rows, by outputs, and hardly at all."""
    threads = torch.get_num_threads()
    try:
        for each in _large(target, bits, case):
            _compare(target, _THREADS, each)
    finally:
        torch.set_num_threads(threads)


@check("linear", cases=_MODES, applies=_declared)
def test_concurrent_linears_do_not_disturb_each_other(target: Target, bits: int, case: Mode) -> None:
    """Calls from four Python threads at once, on one weight and on two: no scratch memory is shared."""
    for each in _large(target, bits, case):
        _compare(target, _CONCURRENT, each, backend=target.name)


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_a_weight_used_before(target: Target, bits: int, case: Mode) -> None:
    """A weight gives the same bits at its first use, at its second, and after it was restored."""
    for each in _cases(target, bits, case):
        _compare(target, _USED_BEFORE, each)


@check("linear", cases=_MODES, applies=_declared)
def test_linear_results_are_new_memory(target: Target, bits: int, case: Mode) -> None:
    """A later call does not change what an earlier one returned, and does not share its memory."""
    large = LinearCase(scope(target.capabilities).weight(bits, 512, 40, 8), (64,), case)
    for each in (*_cases(target, bits, case), large):
        holds(target, NEW_MEMORY, case=each, other=replace(each, x=FloatFill(seed=99)))


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_arguments_that_share_memory(target: Target, bits: int, case: Mode) -> None:
    """A bias that is the first row of x: reading one does not spoil the other."""
    for each in _cases(target, bits, case):
        if each.weight.n <= each.weight.k:
            _compare(target, _SHARED, each)


@check("linear", cases=_MODES, applies=_exact, variants_only=True)
def test_linear_is_the_same_on_every_variant(target: Target, bits: int, case: Mode) -> None:
    """A variant gives the bits of its backend, and computes with what its backend has prepared."""
    name = target.name.partition(":")[0]
    for each in (*_cases(target, bits, case), *_large(target, bits, case)):
        _compare(target, _VARIANTS, each, whole=name)


_EVERY_NAN = """
payloads = {torch.float32: [0x7FC00000, -0x400000, 0x7F800001, 0x7FFFFFFF, -1, 0x7FBFFFFF]}
payloads[torch.float16] = [0x7E00, -0x200, 0x7C01, 0x7FFF, -1, 0x7DFF]
payloads[torch.bfloat16] = [0x7FC0, -0x40, 0x7F81, 0x7FFF, -1, 0x7FBF]
whole = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
def every_nan(dtype):
    return torch.tensor(payloads[dtype], dtype=whole[dtype]).view(dtype)
x = case.tensors()["x"].clone()
for dtype in payloads:
    result = case.call(x=torch.zeros_like(x), bias=every_nan(dtype))
    assert result.isnan().all(), f"a bias of NaN in {dtype} gives {result[0].tolist()}"
x[torch.arange(6), torch.arange(6) * 7] = every_nan(x.dtype)
result = case.call(x=x)
assert result.isnan().all(), f"rows with a NaN give {result[:, 0].tolist()}"
"""
_WRITTEN = """
x, weight = (case.tensors()[name].clone() if name == "x" else case.tensors()[name] for name in ("x", "weight"))
case.call(x=x, weight=weight)
x.mul_(-3).add_(0.5)
actual, expected = case.call(x=x, weight=weight), case.call(x=x.clone(), weight=weight)
"""
_STATE = """
def state():
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    smallest = torch.tensor([2.0**-126]) / 2  # 0 where subnormal values are flushed
    return torch.get_num_threads(), torch.get_default_dtype(), *modes, float(smallest), torch.get_rng_state().tolist()
torch.set_num_threads(2)
before = state()
case.call()
after = state()
assert after == before, f"the state of torch: expected {before[:-1]}, got {after[:-1]}, or the generator has moved"
"""
_PERMUTED = """
actual, expected = case.call(x=case.tensors()["x"][order]), case.call()[order]
"""
_EQUAL_ROWS = """
row = case.tensors()["x"][:1]
actual, expected = case.call(x=row.repeat(35, 1)), case.call(x=row).repeat(35, 1)
"""
_PARTS = """
x, weight = (case.tensors()[name] for name in ("x", "weight"))
actual = torch.cat([case.call(x=rows, weight=weight) for rows in x.split(part)])
expected = case.call()
"""
_HALVES = """
tensors = {name: placed.tensor for name, placed in case.weight.placed.items()}
def part(rows):
    weight = case.weight.quantized(**{name: tensor[rows] for name, tensor in tensors.items()})
    return case.call(weight=weight, bias=case.tensors()["bias"][rows])
actual = torch.cat([part(slice(0, at)), part(slice(at, None))], dim=1)
expected = case.call()
"""
_SCALED = """
actual = case.call(x=case.tensors()["x"] * 2.0**exponent, bias=None)
expected = case.call(bias=None) * 2.0**exponent
"""
_BAD_ROW = """
x = case.tensors()["x"].clone()
x[row, column] = float(special)
actual, expected = case.call(x=x), case.call()
actual[row] = expected[row]
"""
_THREADS = """
torch.set_num_threads(1)
weight = case.tensors()["weight"]
results = [case.call(weight=weight)]
for count in (2, 3, 5, 8, 17, 2, 3, 8):
    torch.set_num_threads(count)
    results.append(case.call(weight=weight))  # kept, so that no call finds the values of another in its memory
    same(results[-1], results[0], within)
actual, expected = results[-1], results[0]
"""
_CONCURRENT = """
from concurrent.futures import ThreadPoolExecutor
cases = [replace(case, x=FloatFill(seed=seed)) for seed in range(4)]
weights = [case.tensors()["weight"]] * 2 + [case.tensors()["weight"] for _ in range(2)]
alone = [each.call() for each in cases]
def repeat(each, weight):
    with bittensor.use_backend(backend):
        return [each.call(weight=weight) for _ in range(2)]
with ThreadPoolExecutor(4) as pool:
    results = list(pool.map(repeat, cases, weights))
for expected, calls in zip(alone, results):
    for actual in calls:
        same(actual, expected, within)
"""
_USED_BEFORE = """
weight, backend = case.tensors()["weight"], bittensor.current_backend()
expected = case.call(weight=weight)
same(case.call(weight=weight), expected, within)
actual = case.call(weight=backend.restore(backend.prepare(weight)))
"""
_SHARED = """
x = case.tensors()["x"]
actual, expected = case.call(bias=x[0, : case.weight.n]), case.call(bias=x[0, : case.weight.n].clone())
"""
_VARIANTS = """
x, weight, bias = (case.tensors()[name] for name in ("x", "weight", "bias"))
backend = bittensor.get_backend(whole)
prepared = backend.prepare(weight)
actual = bittensor.current_backend().linear(x, prepared, bias, case.mode, None)
expected = backend.linear(x, prepared, bias, case.mode, None)
"""


def _large(target: Target, bits: int, mode: Mode) -> list[LinearCase]:
    """Linears large enough that a backend may spread them over threads: above 2**21 products.

    The last has above 2**23, and many outputs: threads may take over from each other there.
    """
    within = scope(target.capabilities)
    zeros = within.zeros
    sizes = ((1, 2060, 1100, 32), (70, 130, 257, 64), (600, 19, 200, 40), (5, 900, 500, 128), (6, 1100, 1300, 128))
    return [
        LinearCase(within.weight(bits, n, k, size, zeros[i % len(zeros)]), (m,), mode, bias=FloatFill())
        for i, (m, n, k, size) in enumerate(sizes)
    ]
