"""docs/numerics.md, sections 4 and 5: what must hold between results, bit for bit, in both modes.

These checks use no oracle. In the mode "float", where an oracle only gives bounds, they are what makes results the same
whatever the batch, the threads and the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch

import bittensor
from bittensor.backend import Capabilities

from ..cases import check_unmodified, snippet
from ..catalogue import check
from ..compare import as_rows, check_floats, fail
from ..float_fills import FloatFill
from ..layouts import LAYOUTS, OVERLAPPING
from ..linear_cases import TORCH_DTYPES, LinearCase, Mode
from ..linear_strategies import FLOAT_DTYPES, scope
from ..oracle_linear import Floats
from ..targets import Target

_MODES: Mapping[str, Mode] = {"int8": "int8", "float": "float"}
_SIZES = ((7, 17, 65, 16), (17, 33, 130, 32), (33, 5, 23, None), (66, 49, 43, 8))


def _declared(capabilities: Capabilities, mode: Any) -> bool:
    return mode in capabilities.activation_modes and capabilities.numerics == "exact"


def _cases(target: Target, bits: int, mode: Mode) -> list[LinearCase]:
    """Linears with tails in every dimension, in each zero kind and dtype of x."""
    within = scope(target.capabilities)
    zeros = within.zeros
    return [
        LinearCase(within.weight(bits, n, k, size, zeros[i % len(zeros)]), (m,), mode, FloatFill(seed=m), dtype,
                   bias=FloatFill(seed=n))
        for i, ((m, n, k, size), dtype) in enumerate(product(_SIZES, FLOAT_DTYPES))
    ]  # fmt: skip


def _on(target: Target, case: LinearCase, **changes: Any) -> Floats:
    """Rows of the result on the target."""
    try:
        with bittensor.use_backend(target.name):
            result = case.call(**changes)
    except Exception as error:
        changed = f"\n# with other {', '.join(changes)} in the check that failed" if changes else ""
        fail(f"expected a result, got {type(error).__name__}: {error}", snippet(case, target.name) + changed)
    return as_rows(result, result.shape[-1])


def _check_same(target: Target, case: LinearCase, actual: Floats, expected: Floats, what: str) -> None:
    text = f"{snippet(case, target.name)}\n# compared in the check that failed: {what}"
    check_floats(torch.from_numpy(actual), expected, expected.shape, torch.float32, what=what, snippet=text)
    target.examples += 1


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_permuted_rows(target: Target, bits: int, case: Mode) -> None:
    """A row's result does not depend on its position or its neighbours."""
    for each in _cases(target, bits, case):
        x = each.inputs["x"].tensor
        order = np.random.default_rng(each.weight.k).permutation(x.shape[0])
        permuted = _on(target, each, x=x[torch.from_numpy(order)])
        _check_same(target, each, permuted, _on(target, each)[order], f"x[{order.tolist()}]")


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_equal_rows(target: Target, bits: int, case: Mode) -> None:
    """The same row at every position of a batch of 35 gives the result of the row alone."""
    for each in _cases(target, bits, case):
        row = each.inputs["x"].tensor[:1]
        alone = _on(target, each, x=row)
        _check_same(
            target, each, _on(target, each, x=row.repeat(35, 1)), np.repeat(alone, 35, axis=0), "a row 35 times"
        )


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_split_batch(target: Target, bits: int, case: Mode) -> None:
    """A batch computed in parts, or row by row, is the batch computed at once."""
    for each in _cases(target, bits, case):
        x, whole = each.inputs["x"].tensor, _on(target, each)
        weight = each.weight.quantized()
        for part in (1, 4, 6, x.shape[0] // 2 + 1):
            pieces = [_on(target, each, x=rows, weight=weight) for rows in torch.split(x, part)]
            _check_same(target, each, np.concatenate(pieces), whole, f"parts of {part} rows")


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_split_outputs(target: Target, bits: int, case: Mode) -> None:
    """A weight cut along N gives the columns of the whole."""
    for each in _cases(target, bits, case):
        tensors = {name: placed.tensor for name, placed in each.weight.placed.items()}
        bias, whole, n = each.inputs["bias"].tensor, _on(target, each), each.weight.n
        for at in {1, n // 2, n - 1}:
            halves = [
                _on(target, each, weight=each.weight.quantized(**{name: t[part] for name, t in tensors.items()}),
                    bias=bias[part])
                for part in (slice(0, at), slice(at, None))
            ]  # fmt: skip
            _check_same(target, each, np.concatenate(halves, axis=1), whole, f"outputs cut at {at}")


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_scaled_rows(target: Target, bits: int, case: Mode) -> None:
    """X times a power of two gives the result times it, as long as nothing leaves the normal range."""
    for each in _cases(target, bits, case):
        if each.x_dtype == "float16":
            continue
        x = each.inputs["x"].tensor
        plain = _on(target, each, bias=None)
        for exponent in (-40, -1, 3, 20):
            scaled = _on(target, each, x=x * 2.0**exponent, bias=None)
            _check_same(target, each, scaled, np.ldexp(plain, exponent), f"x * 2**{exponent}, without a bias")


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_zero_rows(target: Target, bits: int, case: Mode) -> None:
    """Rows of zeros give the bias, rounded to the dtype, or zeros."""
    for each in _cases(target, bits, case):
        x, bias = torch.zeros_like(each.inputs["x"].tensor), each.inputs["bias"]
        rounded = torch.from_numpy(bias.values).to(TORCH_DTYPES[each.x_dtype]).float().numpy()
        _check_same(target, each, _on(target, each, x=x), np.tile(rounded, (x.shape[0], 1)), "x of zeros")
        zeros = np.zeros((x.shape[0], each.weight.n), dtype=np.float32)
        _check_same(target, each, np.abs(_on(target, each, x=x, bias=None)), zeros, "x of zeros, no bias")


@check("linear", cases=_MODES, applies=_declared)
def test_linear_keeps_bad_rows_apart(target: Target, bits: int, case: Mode) -> None:
    """A NaN or an infinity in one row leaves every other row as it was, at every position of the row."""
    for each in _cases(target, bits, case)[::2]:
        whole, weight = _on(target, each), each.weight.quantized()
        for row, special in product({0, 1, 3, 4, 5, whole.shape[0] - 1}, ("nan", "inf")):
            x = each.inputs["x"].tensor.clone()
            x[row, (row * 7) % each.weight.k] = float(special)
            spoiled = _on(target, each, x=x, weight=weight)
            spoiled[row] = whole[row]
            _check_same(target, each, spoiled, whole, f"rows but {row}, which holds {special}")


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_strided_inputs(target: Target, bits: int, case: Mode) -> None:
    """The same values in other places of memory give the same bits; no byte of them or between them changes."""
    for each in _cases(target, bits, case):
        whole = _on(target, each)
        for layout in sorted(set(LAYOUTS) - OVERLAPPING):
            moved = replace(
                each, weight=replace(each.weight, layout=layout, poison=1), x_layout=layout, bias_layout=layout
            )
            _check_same(target, moved, _on(target, moved), whole, f"layout {layout}")
            check_unmodified(moved.inputs | moved.weight.placed, snippet(moved, target.name))


@check("linear", cases=_MODES, applies=_declared)
def test_linear_on_any_number_of_threads(target: Target, bits: int, case: Mode) -> None:
    """1, 2, 3 and 8 threads give the same bits, for shapes that split by rows, by outputs, and hardly at all."""
    threads = torch.get_num_threads()
    try:
        for each in _large(target, bits, case):
            torch.set_num_threads(1)
            alone, weight = _on(target, each), each.weight.quantized()
            for count in (2, 3, 8):
                torch.set_num_threads(count)
                for _ in range(2):
                    _check_same(target, each, _on(target, each, weight=weight), alone, f"{count} threads")
    finally:
        torch.set_num_threads(threads)


@check("linear", cases=_MODES, applies=_declared)
def test_concurrent_linears_do_not_disturb_each_other(target: Target, bits: int, case: Mode) -> None:
    """Calls from four Python threads at once, on one weight and on several: no scratch memory is shared."""
    cases = [replace(each, x=FloatFill(seed=seed)) for each in _large(target, bits, case) for seed in range(4)]
    weights = {each.weight: each.weight.quantized() for each in cases}
    alone = [_on(target, each) for each in cases]

    def repeat(each: LinearCase) -> list[Floats]:
        return [_on(target, each, weight=weights[each.weight]) for _ in range(2)]

    with ThreadPoolExecutor(4) as pool:
        for each, expected, results in zip(cases, alone, pool.map(repeat, cases), strict=True):
            for result in results:
                _check_same(target, each, result, expected, "from four threads at once")


@check("linear", cases=_MODES, applies=_declared)
def test_linear_of_a_weight_used_before(target: Target, bits: int, case: Mode) -> None:
    """A weight gives the same bits at its first use, at its second, and after it was restored."""
    for each in _cases(target, bits, case):
        weight = each.weight.quantized()
        first = _on(target, each, weight=weight)
        _check_same(target, each, _on(target, each, weight=weight), first, "the second use of a weight")
        backend = target.backend
        restored = backend.restore(backend.prepare(weight))
        _check_same(target, each, _on(target, each, weight=restored), first, "a restored weight")


@check("linear", cases=_MODES, applies=_declared, variants_only=True)
def test_linear_is_the_same_on_every_variant(target: Target, bits: int, case: Mode) -> None:
    """A variant gives the bits of its backend, and computes with what its backend has prepared."""
    name = target.name.partition(":")[0]
    backend = bittensor.get_backend(name)
    for each in (*_cases(target, bits, case), *_large(target, bits, case)):
        x, bias = (each.inputs[tensor].tensor for tensor in ("x", "bias"))
        prepared = backend.prepare(each.weight.quantized())
        own = as_rows(target.backend.linear(x, prepared, bias, case, None), each.weight.n)
        expected = as_rows(backend.linear(x, prepared, bias, case, None), each.weight.n)
        _check_same(target, each, own, expected, f"the result of {name}")


def _large(target: Target, bits: int, mode: Mode) -> list[LinearCase]:
    """Linears large enough that a backend may spread them over threads: above 2**21 products."""
    within = scope(target.capabilities)
    zeros = within.zeros
    sizes = ((1, 2060, 1100, 32), (70, 130, 257, 64), (600, 19, 200, 40), (5, 900, 500, 128))
    return [
        LinearCase(within.weight(bits, n, k, size, zeros[i % len(zeros)]), (m,), mode, bias=FloatFill())
        for i, (m, n, k, size) in enumerate(sizes)
    ]
