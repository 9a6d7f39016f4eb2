"""docs/numerics.md, section 2: what must hold between results, whatever an oracle says.

These checks share no arithmetic with the oracle: a mistake in both would still have to be the same under each change.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import bittensor

from ..cases import MatmulCase, ScaleFill, snippet
from ..catalogue import check
from ..compare import check_equal, fail
from ..fills import BiasFill, Fill
from ..layouts import LAYOUTS, OVERLAPPING
from ..targets import Target

_REORDERING = "x is permuted along its rows in the check that failed"


def _cases(bits: int) -> list[MatmulCase]:
    """Products with tails in every dimension, in each epilogue, from codes and from words."""
    scale = ScaleFill("per_output", (0.5, 0.1, -0.25, 0.01), seed=5)
    return [
        MatmulCase(
            bits, k, n, (m,), Fill(seed=m), Fill(seed=n), BiasFill("balance", seed=k), epilogue,
            x_zero=1, packed_x=packed, accumulator=accumulator, poison=3,
        )
        for m, n, k in ((7, 17, 65), (17, 33, 130), (33, 5, 17), (65, 70, 33))
        for epilogue, accumulator in ((None, True), (None, False), (scale, False))
        for packed in (False, True)
    ]  # fmt: skip


def _on(target: Target, case: MatmulCase, **changes: Any) -> np.ndarray[Any, Any]:
    arguments = {**case.arguments(), **changes}
    try:
        with bittensor.use_backend(target.name):
            return bittensor.packed_matmul(**arguments).numpy()
    except Exception as error:
        changed = f"\n# with other {', '.join(changes)} in the check that failed" if changes else ""
        fail(f"expected a result, got {type(error).__name__}: {error}", snippet(case, target.name) + changed)


@check("packed_matmul")
def test_permuted_rows_permute_the_result(target: Target, bits: int) -> None:
    """A row's result does not depend on its position or its neighbours."""
    for case in _cases(bits):
        x = case.placed["x"].tensor
        order = torch.from_numpy(np.random.default_rng(case.k).permutation(x.shape[0]))
        expected = _on(target, case)[order.numpy()]
        text = f"{snippet(case, target.name)}\n# {_REORDERING}: x[{order.tolist()}]"
        check_equal(_on(target, case, x=x[order]), expected, what="permuted rows", snippet=text)
        target.examples += 1


@check("packed_matmul")
def test_equal_rows_give_equal_results(target: Target, bits: int) -> None:
    """The same row at every position of a batch of 33 gives the same result 33 times."""
    for case in _cases(bits):
        row = case.placed["x"].tensor[:1]
        result = _on(target, case, x=row.repeat(33, 1))
        expected = np.repeat(result[:1], 33, axis=0)
        text = f"{snippet(case, target.name)}\n# x is its first row, 33 times, in the check that failed"
        check_equal(result, expected, what="equal rows", snippet=text)
        target.examples += 1


@check("packed_matmul")
def test_split_batch_gives_the_same_rows(target: Target, bits: int) -> None:
    """A batch computed in two parts, or row by row, is the batch computed at once."""
    for case in _cases(bits):
        x = case.placed["x"].tensor
        expected = _on(target, case)
        for part in (1, 4, x.shape[0] // 2 + 1):
            pieces = [_on(target, case, x=x[start : start + part]) for start in range(0, x.shape[0], part)]
            text = f"{snippet(case, target.name)}\n# x is given in parts of {part} rows in the check that failed"
            check_equal(np.concatenate(pieces), expected, what=f"parts of {part} rows", snippet=text)
            target.examples += 1


@check("packed_matmul")
def test_split_outputs_give_the_same_columns(target: Target, bits: int) -> None:
    """A weight given in two halves along N gives the accumulators of the whole."""
    for case in _cases(bits):
        if not case.accumulator:
            continue
        weight, bias = case.placed["weight"].tensor, case.placed["bias"].tensor
        expected = _on(target, case)
        for at in (1, case.n // 2, case.n - 1):
            halves = [_on(target, case, weight=weight[s], bias=bias[s]) for s in (slice(0, at), slice(at, None))]
            text = f"{snippet(case, target.name)}\n# weight and bias are cut at row {at} in the check that failed"
            check_equal(np.concatenate(halves, axis=-1), expected, what=f"outputs cut at {at}", snippet=text)
            target.examples += 1


@check("packed_matmul")
def test_appended_outputs_leave_the_first_alone(target: Target, bits: int) -> None:
    """More rows of weight change no earlier output, in the packed result too."""
    scale = ScaleFill("one", (0.125,))
    for n in range(1, 40, 3):
        case = MatmulCase(bits, 33, n, (5,), weight=Fill(seed=n), scale=scale, out_zero=1)
        weight = case.placed["weight"].tensor
        more = torch.cat([weight, weight.flip(0), weight])
        with bittensor.use_backend(target.name):
            extended = bittensor.packed_matmul(**{**case.arguments(), "weight": more})
        whole, per_word = _on(target, case), 64 // bits
        full = n // per_word
        text = f"{snippet(case, target.name)}\n# weight is extended to {3 * n} rows in the check that failed"
        check_equal(extended.numpy()[:, :full], whole[:, :full], what="extended weight", snippet=text)
        if n % per_word:
            mask = np.int64((1 << (bits * (n % per_word))) - 1)
            check_equal(
                extended.numpy()[:, full] & mask, whole[:, full], what="extended weight, last word", snippet=text
            )
        target.examples += 1


@check("packed_matmul")
def test_words_and_codes_are_the_same_input(target: Target, bits: int) -> None:
    """X as packed words gives what x as codes gives."""
    for case in _cases(bits):
        if case.packed_x:
            expected = _on(target, replace(case, packed_x=False))
            text = f"{snippet(case, target.name)}\n# compared with the same case with packed_x=False"
            check_equal(_on(target, case), expected, what="packed x", snippet=text)
            target.examples += 1


@check("packed_matmul")
def test_results_chain(target: Target, bits: int) -> None:
    """A packed result is the next layer's input as it is: two layers in words are two layers in codes."""
    for m, k, hidden, n in ((1, 17, 33, 9), (5, 65, 17, 33), (9, 130, 100, 3)):
        scale = ScaleFill("one", (0.02,))
        first = MatmulCase(bits, k, hidden, (m,), x_zero=1, bias=BiasFill("balance"), scale=scale)
        second = MatmulCase(bits, hidden, n, (m,), weight_zero=1, packed_x=True, accumulator=True)
        with bittensor.use_backend(target.name):
            words = first.call()
            chained = bittensor.packed_matmul(**{**second.arguments(), "x": words}).numpy()
        codes = _unpacked_by_definition(first.expected, hidden, bits)
        expected = replace(second, x=Fill(values=tuple(codes.ravel().tolist()))).expected
        text = f"{snippet(first, target.name)}\n# and its result is x of:\n# {second!r}"
        check_equal(chained, expected, what="chained layers", snippet=text)
        target.examples += 1


@check("packed_matmul")
def test_strided_inputs_give_the_contiguous_result(target: Target, bits: int) -> None:
    """The same values in other places of memory give the same bits."""
    for case in _cases(bits):
        expected = _on(target, case)
        for layout in sorted(set(LAYOUTS) - OVERLAPPING):
            moved = replace(case, x_layout=layout, weight_layout=layout, bias_layout=layout)
            text = snippet(moved, target.name)
            check_equal(_on(target, moved), expected, what=f"layout {layout}", snippet=text)
            target.examples += 1


@check("packed_matmul")
def test_inputs_are_unmodified(target: Target, bits: int) -> None:
    """No byte of an input changes, nor of the gaps between its elements."""
    for case in _cases(bits):
        for layout in ("contiguous", "offset", "padded_rows", "transposed"):
            moved = replace(case, x_layout=layout, weight_layout=layout, bias_layout=layout)
            _on(target, moved)
            for name, placed in moved.placed.items():
                if not placed.is_unmodified():
                    fail(f"{name}: the call wrote to its input, or around it", snippet(moved, target.name))
            target.examples += 1


@check("packed_matmul")
def test_number_of_threads_does_not_matter(target: Target, bits: int) -> None:
    """1, 2, 3 and 8 threads give the same bits, for shapes that split by rows, by outputs, and hardly at all."""
    threads = torch.get_num_threads()
    try:
        for case in _large(bits):
            for count in (1, 2, 3, 8):
                torch.set_num_threads(count)
                text = f"torch.set_num_threads({count})\n{snippet(case, target.name)}"
                for _ in range(3):
                    check_equal(_on(target, case), case.expected, what=f"{count} threads", snippet=text)
                    target.examples += 1
    finally:
        torch.set_num_threads(threads)


@check("packed_matmul")
def test_concurrent_calls_do_not_disturb_each_other(target: Target, bits: int) -> None:
    """Calls of different shapes from four Python threads at once: no scratch memory is shared between them."""
    # Cases that run side by side have one shape and different data.
    different = (Fill(seed=101), Fill(seed=102), Fill("max"), Fill("zero"))
    cases = [replace(case, x=x) for case in (*_cases(bits)[:12:3], *_large(bits)) for x in different]
    for case in cases:
        assert case.expected is not None  # computed before the threads start

    def repeat(case: MatmulCase) -> list[np.ndarray[Any, Any]]:
        return [_on(target, case) for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        for case, results in zip(cases, pool.map(repeat, cases), strict=True):
            for result in results:
                text = f"# run from four threads at once:\n{snippet(case, target.name)}"
                check_equal(result, case.expected, what="concurrent calls", snippet=text)
                target.examples += 1


def _large(bits: int) -> list[MatmulCase]:
    """Products large enough that a backend may spread them over threads."""
    sizes = ((1, 1030, 500), (65, 130, 257), (300, 17, 130), (3, 300, 1000))
    return [MatmulCase(bits, k, n, (m,), x_zero=1, packed_x=bool(k % 2), accumulator=True) for m, n, k in sizes]


def _unpacked_by_definition(words: np.ndarray[Any, Any], columns: int, bits: int) -> np.ndarray[Any, Any]:
    """Codes by division, so that this chapter does not lean on the oracle's shifts."""
    per_word = 64 // bits
    rows = [
        [int(row[k // per_word]) % 2**64 // 2 ** (bits * (k % per_word)) % 2**bits for k in range(columns)]
        for row in words
    ]
    return np.array(rows, dtype=np.uint8)
