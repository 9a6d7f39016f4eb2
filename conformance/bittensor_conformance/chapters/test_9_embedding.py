"""docs/numerics.md, section 9: rows of a group-quantized weight, to the bit."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, product

import pytest
import torch

from bittensor import UnsupportedOperationError

from ..catalogue import check
from ..compare import fail
from ..embedding_cases import EmbeddingCase
from ..fills import Fill
from ..float_fills import SCALE_STYLES, FloatFill
from ..layouts import LAYOUTS
from ..linear_strategies import FLOAT_DTYPES, OUTPUTS, scope, shapes_of_groups
from ..scripts import holds
from ..strategies import LEADING
from ..targets import Target


@check("embedding")
def test_rows_of_every_shape_of_groups(target: Target, bits: int) -> None:
    """Every group size with whole and ragged groups, in each zero kind."""
    within = scope(target.capabilities)
    dtypes = cycle(product(within.scale_dtypes, FLOAT_DTYPES))
    cases = []
    for (group_size, k), zero in product(shapes_of_groups(), within.zeros):
        scale_dtype, dtype = next(dtypes)
        weight = within.weight(bits, 18, k, group_size, zero, scale_dtype, poison=k)
        cases.append(EmbeddingCase(weight, (7,), dtype, seed=k))
    target.run(cases)


@check("embedding")
def test_every_row(target: Target, bits: int) -> None:
    """Tables of every length, and more indices than rows."""
    within = scope(target.capabilities)
    target.run([
        EmbeddingCase(within.weight(bits, n, 41, 16, zero), (count,), seed=n)
        for n, zero, count in product(OUTPUTS, within.zeros, (1, 2, 150))
    ])  # fmt: skip


@check("embedding")
def test_rows_beyond_16_bits(target: Target, bits: int) -> None:
    """A table of more than 2**16 rows, more indices than that, and long rows."""
    within = scope(target.capabilities)
    cases = [EmbeddingCase(within.weight(bits, 70_000, 9, 8, zero), (2000,)) for zero in within.zeros]
    cases.append(EmbeddingCase(within.weight(bits, 3, 9, 8), (70_000,)))
    cases.append(EmbeddingCase(within.weight(bits, 5, 4100, 128), (7,)))
    target.run(cases, always=True)


@check("embedding")
def test_rows_of_every_dtype_and_magnitude(target: Target, bits: int) -> None:
    """A product and a sum in float32, then the cast: with scales and offsets of any size and sign."""
    within = scope(target.capabilities)
    target.run([
        EmbeddingCase(
            within.weight(bits, 9, 75, 24, zero, scale, scales=FloatFill(style, 1), offsets=FloatFill(style, 2)),
            (20,), dtype,
        )
        for zero, scale, dtype, style in product(within.zeros, within.scale_dtypes, FLOAT_DTYPES, SCALE_STYLES)
    ])  # fmt: skip


@check("embedding")
def test_indices_of_every_form(target: Target, bits: int) -> None:
    """int64 and int32, in any strides and leading dimensions, none and one without dimensions included."""
    weight = scope(target.capabilities).weight(bits, 17, 41, 16)
    cases = [EmbeddingCase(weight, leading, narrow=narrow) for leading, narrow in product(LEADING, (False, True))]
    cases += [EmbeddingCase(weight, (0, 3)), EmbeddingCase(weight, ())]
    cases += [
        EmbeddingCase(weight, leading, narrow=narrow, layout=layout)
        for layout, leading, narrow in product(LAYOUTS, ((5,), (4, 3)), (False, True))
    ]
    target.run(cases, always=True)


@check("embedding")
def test_rows_are_the_same_on_any_number_of_threads(target: Target, bits: int) -> None:
    """Enough rows to share out, on 1 to 3 threads."""
    within, threads = scope(target.capabilities), torch.get_num_threads()
    try:
        for count, zero in product((1, 2, 3), within.zeros):
            torch.set_num_threads(count)
            EmbeddingCase(within.weight(bits, 130, 200, 64, zero), (400,)).run(target.name)
            target.examples += 1
    finally:
        torch.set_num_threads(threads)


@check("embedding")
def test_embedded_rows_are_new_memory(target: Target, bits: int) -> None:
    """A later call does not change what an earlier one returned, and does not share its memory."""
    within = scope(target.capabilities)
    for n, k, count in ((17, 41, 5), (40, 256, 300)):
        case = EmbeddingCase(within.weight(bits, n, k, 8), (count,))
        holds(target, _NEW_MEMORY, case=case, other=replace(case, seed=99), backend=target.name)


@check("embedding")
def test_concurrent_embeddings_do_not_disturb_each_other(target: Target, bits: int) -> None:
    """Calls from four Python threads at once, of one table and of others of its form."""
    within = scope(target.capabilities)
    for n, k, count in ((17, 41, 5), (60, 300, 700)):
        case = EmbeddingCase(within.weight(bits, n, k, 8), (count,))
        tables = [replace(case.weight, codes=Fill(seed=seed)) for seed in range(4)]
        others = tuple(replace(case, weight=table, seed=seed) for seed, table in enumerate(tables))
        holds(target, _CONCURRENT, cases=others, backend=target.name)


_NEW_MEMORY = """
first = case.call(backend)
kept = first.clone()
second = other.call(backend)
same(first, kept)
assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr(), "two results share memory"
"""
_CONCURRENT = """
from concurrent.futures import ThreadPoolExecutor
alone = [each.call(backend) for each in cases]
with ThreadPoolExecutor(4) as pool:
    results = list(pool.map(lambda each: [each.call(backend) for _ in range(3)], cases))
for expected, calls in zip(alone, results):
    for actual in calls:
        same(actual, expected)
"""
_REFUSED = """\
import torch
import bittensor
from bittensor_conformance.embedding_cases import *
case, backend = {case!r}, bittensor.get_backend({backend!r})
indices = torch.tensor({indices}, dtype={dtype})
try:
    backend.embedding(indices, backend.prepare(case.weight.quantized()), torch.float32)
except (TypeError, ValueError, RuntimeError):
    pass
else:
    raise AssertionError("expected an error, got a result")
"""


@check("embedding", applies=lambda capabilities, _: capabilities.checks_arguments)
def test_an_index_that_is_no_row_is_refused(target: Target, bits: int) -> None:
    """Below 0 and from N on, wherever it stands: an error, and no read outside of the table."""
    case = EmbeddingCase(scope(target.capabilities).weight(bits, 17, 41, 16))
    backend = target.backend
    prepared = backend.prepare(case.weight.quantized())
    wrong_indices = (-1, 17, 18, 2**31 - 1, -(2**31), 2**32 + 3, -(2**32) + 3)  # the last two: 3 in 32 bits
    for wrong, place, dtype in product(wrong_indices, (0, 4), (torch.int64, torch.int32)):
        if abs(wrong) > 2**31 and dtype is torch.int32:
            continue
        indices = torch.arange(5, dtype=dtype)
        indices[place] = wrong
        try:
            backend.embedding(indices, prepared, torch.float32)
        except (TypeError, ValueError, RuntimeError):
            target.examples += 1
        else:
            text = _REFUSED.format(case=case, backend=target.name, indices=indices.tolist(), dtype=dtype)
            fail(f"expected an error for index {wrong} of a table of 17 rows, got a result", text)


@check("embedding", variants_only=True)
def test_embedding_runs_its_own_kernels(target: Target, bits: int) -> None:
    """Only kernels called ``..._<variant>`` gain calls, and at least one does."""
    case = EmbeddingCase(scope(target.capabilities).weight(bits, 33, 130, 16))
    backend, text = target.backend, case.text(target.name)
    prepared = backend.prepare(case.weight.quantized())
    before = dict(backend.kernel_calls())
    backend.embedding(case.placed.tensor, prepared, torch.float32)
    ran = {name for name, count in backend.kernel_calls().items() if count != before.get(name, 0)}
    if not ran or (foreign := sorted(name for name in ran if not name.endswith(f"_{target.variant}"))):
        fail(f"expected kernels ..._{target.variant} and no others, got {foreign if ran else 'none'}", text)
    target.examples += 1


@check("embedding", undeclared=True)
def test_undeclared_embedding_is_refused(target: Target, bits: int) -> None:
    """UnsupportedOperationError from a backend that declares linear, but not the rows of a weight."""
    if "embedding" not in target.capabilities.operations:
        case = EmbeddingCase(scope(target.capabilities).weight(bits, 3, 9, 8))
        held = case.weight.quantized().canonical()
        with pytest.raises(UnsupportedOperationError):
            target.backend.embedding(case.placed.tensor, held, torch.float32)
