"""docs/numerics.md, section 2: what must hold between results, whatever an oracle says.

These checks share no arithmetic with the oracle: a mistake in both would still have to be the same under each change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..cases import MatmulCase, ScaleFill
from ..catalogue import check
from ..fills import BiasFill, Fill
from ..layouts import LAYOUTS, OVERLAPPING
from ..scripts import CONCURRENT, NEW_MEMORY, holds, on_threads
from ..targets import Target


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


@check("packed_matmul")
def test_permuted_rows_permute_the_result(target: Target, bits: int) -> None:
    """A row's result does not depend on its position or its neighbours."""
    for case in _cases(bits):
        order = np.random.default_rng(case.k).permutation(case.leading[0]).tolist()
        holds(target, "same(case.call(x=case.tensors()['x'][order]), case.call()[order])", case=case, order=order)


@check("packed_matmul")
def test_equal_rows_give_equal_results(target: Target, bits: int) -> None:
    """The same row at every position of a batch of 33 gives the result of the row alone 33 times."""
    for case in _cases(bits):
        holds(target, _EQUAL_ROWS, case=case)


@check("packed_matmul")
def test_split_batch_gives_the_same_rows(target: Target, bits: int) -> None:
    """A batch computed in parts, or row by row, is the batch computed at once."""
    for case in _cases(bits):
        for part in (1, 4, 6, case.leading[0] // 2 + 1):
            holds(target, _PARTS, case=case, part=part)


@check("packed_matmul")
def test_split_outputs_give_the_same_columns(target: Target, bits: int) -> None:
    """A weight given in two halves along N gives the accumulators of the whole."""
    for case in _cases(bits):
        for at in (1, case.n // 2, case.n - 1) if case.accumulator else ():
            holds(target, _HALVES, case=case, at=at)


@check("packed_matmul")
def test_appended_outputs_leave_the_first_alone(target: Target, bits: int) -> None:
    """More rows of weight change no earlier output, in the packed result too."""
    scale = ScaleFill("one", (0.125,))
    for n in range(1, 40, 3):
        case = MatmulCase(bits, 33, n, (5,), weight=Fill(seed=n), scale=scale, out_zero=1)
        holds(target, _APPENDED, case=case)


@check("packed_matmul")
def test_words_and_codes_are_the_same_input(target: Target, bits: int) -> None:
    """X as packed words gives what x as codes gives."""
    for case in _cases(bits):
        if case.packed_x:
            holds(target, "same(case.call(), replace(case, packed_x=False).call())", case=case)


@check("packed_matmul")
def test_results_chain(target: Target, bits: int) -> None:
    """A packed result is the next layer's input as it is: two layers in words are two layers in codes."""
    for m, k, hidden, n in ((1, 17, 33, 9), (5, 65, 17, 33), (9, 130, 100, 3)):
        scale = ScaleFill("one", (0.02,))
        first = MatmulCase(bits, k, hidden, (m,), x_zero=1, bias=BiasFill("balance"), scale=scale)
        codes = _unpacked_by_definition(first.expected, hidden, bits)
        second = MatmulCase(
            bits, hidden, n, (m,), x=Fill(values=tuple(codes.ravel().tolist())), weight_zero=1, packed_x=True,
            accumulator=True,
        )  # fmt: skip
        holds(target, "same(second.call(x=first.call()), second.expected)", first=first, second=second)


@check("packed_matmul")
def test_strided_inputs_give_the_contiguous_result(target: Target, bits: int) -> None:
    """The same values in other places of memory give the same bits."""
    for case in _cases(bits):
        for layout in sorted(set(LAYOUTS) - OVERLAPPING):
            moved = replace(case, x_layout=layout, weight_layout=layout, bias_layout=layout)
            holds(target, "same(moved.call(), case.call())", case=case, moved=moved)


@check("packed_matmul")
def test_inputs_are_unmodified(target: Target, bits: int) -> None:
    """No byte of an input changes, nor of the gaps between its elements."""
    target.run(
        [
            replace(case, x_layout=layout, weight_layout=layout, bias_layout=layout)
            for case in _cases(bits)
            for layout in ("contiguous", "offset", "padded_rows", "transposed")
        ],
        always=True,
    )


@check("packed_matmul")
def test_one_tensor_may_be_both_operands(target: Target, bits: int) -> None:
    """The same words as x and as weight: reading one does not spoil the other."""
    for rows, k in ((1, 17), (9, 65), (33, 130)):
        case = MatmulCase(bits, k, rows, (rows,), Fill(seed=k), Fill(seed=k), packed_x=True, x_zero=1, accumulator=True)
        holds(target, "same(case.call(x=case.tensors()['weight']), case.expected)", case=case)


@check("packed_matmul")
def test_results_are_new_memory(target: Target, bits: int) -> None:
    """A later call does not change what an earlier one returned."""
    large = MatmulCase(bits, 40, 256, (128,), accumulator=True)
    for case in (*_cases(bits), large, replace(large, accumulator=False)):
        holds(target, NEW_MEMORY, case=case, other=replace(case, x=Fill(seed=99)))


@check("packed_matmul")
def test_number_of_threads_does_not_matter(target: Target, bits: int) -> None:
    """1, 2, 3 and 8 threads give the same bits, for shapes that split by rows, by outputs, and hardly at all."""
    threads = torch.get_num_threads()
    try:
        for case in _large(bits):
            for seed, count in enumerate((1, 2, 3, 8) * 3):
                torch.set_num_threads(count)
                # Other codes each time: memory that is left as it was may hold the result of the last call.
                replace(case, x=Fill(seed=seed)).run(target.name, before=on_threads(count))
                target.examples += 1
    finally:
        torch.set_num_threads(threads)


@check("packed_matmul")
def test_concurrent_calls_do_not_disturb_each_other(target: Target, bits: int) -> None:
    """Calls of different shapes from four Python threads at once: no scratch memory is shared between them."""
    # Cases that run side by side have one shape and different data.
    fills = [Fill(seed=101), Fill(seed=102), Fill("max"), Fill("zero")]
    for case in (*_cases(bits)[:12:3], *_large(bits)):
        cases = tuple(replace(case, x=fill) for fill in fills)
        holds(target, CONCURRENT, backend=target.name, cases=cases)


_EQUAL_ROWS = """
row = case.tensors()["x"][:1]
same(case.call(x=row.repeat(33, 1)), case.call(x=row).repeat(33, 1))
"""
_PARTS = """
parts = [case.call(x=rows) for rows in case.tensors()["x"].split(part)]
same(torch.cat(parts), case.call())
"""
_HALVES = """
weight, bias = (case.tensors()[name] for name in ("weight", "bias"))
halves = [case.call(weight=weight[half], bias=bias[half]) for half in (slice(0, at), slice(at, None))]
same(torch.cat(halves, dim=-1), case.call())
"""
_APPENDED = """
weight = case.tensors()["weight"]
extended = case.call(weight=torch.cat([weight, weight.flip(0), weight]))
same(oracle.unpack(extended.numpy(), case.n, case.bits), oracle.unpack(case.call().numpy(), case.n, case.bits))
"""


def _large(bits: int) -> list[MatmulCase]:
    """Products large enough that a backend may spread them over threads: above 2**20 terms."""
    sizes = ((1, 2100, 600), (65, 130, 257), (600, 17, 130), (7, 500, 400))
    cases = [MatmulCase(bits, k, n, (m,), x_zero=1, packed_x=bool(k % 2), accumulator=True) for m, n, k in sizes]
    # Packed results, of which two threads may write to one word.
    scale = ScaleFill("one", (0.02,))
    return [*cases, *(replace(each, accumulator=False, scale=scale) for each in cases[:2])]


def _unpacked_by_definition(words: np.ndarray[Any, Any], columns: int, bits: int) -> np.ndarray[Any, Any]:
    """Codes by division, so that this chapter does not lean on the oracle's shifts."""
    per_word = 64 // bits
    rows = [
        [int(row[k // per_word]) % 2**64 // 2 ** (bits * (k % per_word)) % 2**bits for k in range(columns)]
        for row in words
    ]
    return np.array(rows, dtype=np.uint8)
