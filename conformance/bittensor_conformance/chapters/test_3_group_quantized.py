"""docs/numerics.md, section 3: group-quantized weights, prepared, restored and dequantized."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, product

import numpy as np
import torch

import bittensor
from bittensor.prepared_weight import CANONICAL_LAYOUT

from .. import oracle, oracle_linear
from ..cases import check_unmodified, source
from ..catalogue import check
from ..compare import check_equal, check_floats, fail
from ..float_fills import SCALE_STYLES, FloatFill
from ..layouts import LAYOUTS
from ..linear_cases import TORCH_DTYPES, WeightCase
from ..linear_strategies import FLOAT_DTYPES, OUTPUTS, scope, shapes_of_groups, weight_cases
from ..targets import Target


@check("prepare")
def test_restored_weight_is_the_weight(target: Target, bits: int) -> None:
    """Any weight, prepared and restored: the same words, scales, zeros and offsets to the bit."""
    cases = weight_cases(bits, scope(target.capabilities), any_layout=True)
    target.for_all(cases, lambda case: _check_restored(target, case))


@check("prepare")
def test_restored_weight_of_every_shape(target: Target, bits: int) -> None:
    """Every group size with whole and ragged groups, every tail of N, in each zero kind and dtype in turn."""
    within = scope(target.capabilities)
    kinds = cycle(product(within.zeros, within.scale_dtypes))
    shapes = [(16, *shape) for shape in shapes_of_groups()] + [(n, 16, 37) for n in OUTPUTS]
    cases = []
    for n, group_size, columns in shapes:
        for _ in range(2):
            zero, dtype = next(kinds)
            cases.append(within.weight(bits, n + 1, columns, group_size, zero, dtype, poison=columns))
    _check_all_restored(target, cases)


@check("prepare")
def test_restored_weight_in_each_layout(target: Target, bits: int) -> None:
    """Words, scales, zeros and offsets in any strides."""
    within = scope(target.capabilities)
    cases = [
        within.weight(bits, 19, 70, 16, zero, dtype, poison=1, layout=layout)
        for layout, zero, dtype in product(LAYOUTS, within.zeros, within.scale_dtypes)
    ]
    _check_all_restored(target, cases)


@check("prepare")
def test_restored_scales_keep_every_bit(target: Target, bits: int) -> None:
    """Scales and offsets of every magnitude and sign, subnormals and the zero of either sign included."""
    within = scope(target.capabilities)
    cases = [
        within.weight(bits, 5, 40, 8, zero, dtype, scales=FloatFill(style, 7), offsets=FloatFill(style, 8))
        for zero, dtype in product(within.zeros, within.scale_dtypes)
        for style in ("zero", "wide", "subnormal", "huge")
    ]
    _check_all_restored(target, cases)


@check("prepare")
def test_restored_weight_is_the_same_on_any_number_of_threads(target: Target, bits: int) -> None:
    """A large weight, prepared and restored on 1 to 3 threads."""
    within = scope(target.capabilities)
    threads, zeros = torch.get_num_threads(), scope(target.capabilities).zeros
    try:
        for count, (n, k) in product((1, 2, 3), ((1030, 90), (18, 4100))):
            torch.set_num_threads(count)
            _check_restored(target, within.weight(bits, n, k, 32, zeros[-1]), f"\n# on {count} threads")
            target.examples += 1
    finally:
        torch.set_num_threads(threads)


@check("prepare")
def test_prepared_weight_says_what_it_is(target: Target, bits: int) -> None:
    """Form and layout of a prepared weight are those of the weight and of the capabilities."""
    within = scope(target.capabilities)
    for zero, dtype in product(within.zeros, within.scale_dtypes):
        case = within.weight(bits, 17, 40, 16, zero, dtype)
        prepared = target.backend.prepare(case.quantized())
        text = _preparing(case, target)
        expected = ((17, 40), bits, case.group_size, zero, TORCH_DTYPES[dtype])
        form = prepared.form
        if (form.shape, form.bits, form.group_size, form.zero, form.scale_dtype) != expected:
            fail(f"prepare: expected a form of {expected}, got {form}", text)
        if prepared.layout != target.capabilities.layout:
            fail(f"prepare: expected layout {target.capabilities.layout!r}, got {prepared.layout!r}", text)
        target.examples += 1


@check("prepare", requires=("unpack",))
def test_dequantized_weight_matches_the_oracle(target: Target, bits: int) -> None:
    """A product and a sum in float32, then the cast: to each dtype, before preparing and after restoring."""
    within = scope(target.capabilities)
    for zero, dtype, style in product(within.zeros, within.scale_dtypes, SCALE_STYLES):
        case = within.weight(bits, 17, 75, 24, zero, dtype, scales=FloatFill(style, 1), offsets=FloatFill(style, 2))
        text = _preparing(case, target)
        with bittensor.use_backend(target.name) as backend:
            weight = case.quantized()
            for name in FLOAT_DTYPES:
                expected = oracle_linear.dequantize(case.weight, name)
                for each in (weight, backend.restore(backend.prepare(weight))):
                    values = each.dequantize(TORCH_DTYPES[name])
                    what = f"dequantize to {name}"
                    check_floats(values, expected, expected.shape, TORCH_DTYPES[name], what=what, snippet=text)
        target.examples += 1


def _check_all_restored(target: Target, cases: Sequence[WeightCase]) -> None:
    for case in cases[:: target.profile.stride]:
        _check_restored(target, case)
        target.examples += 1


def _check_restored(target: Target, case: WeightCase, remark: str = "") -> None:
    text = _preparing(case, target) + remark
    with bittensor.use_backend(target.name) as backend:
        try:
            prepared = backend.prepare(case.quantized())
            restored = backend.restore(prepared)
        except Exception as error:
            fail(f"expected a weight, got {type(error).__name__}: {error}", text)
    check_unmodified(case.placed, text)
    form = (restored.shape, restored.bits, restored.group_size, restored.zero)
    expected = ((case.n, case.k), case.bits, case.group_size or case.k, case.zero)
    if form != expected:
        fail(f"restore: expected {expected}, got {form}", text)
    # Unused bits come back as 0, or, where the layout is the canonical one, as they were given.
    words, packed = restored.words.numpy(), oracle.pack(case.weight.codes, case.bits)
    as_given = target.capabilities.layout == CANONICAL_LAYOUT and np.array_equal(words, case.placed["words"].values)
    check_equal(words, case.placed["words"].values if as_given else packed, what="restored words", snippet=text)
    if case.zero == "integer":
        assert restored.zeros is not None
        check_equal(restored.zeros.numpy(), case.placed["zeros"].values, what="restored zeros", snippet=text)
    for name in ("scales", "offsets"):
        if name in case.placed:
            values, dtype = case.placed[name].values, TORCH_DTYPES[case.scale_dtype]
            tensor = getattr(restored, name).contiguous()
            check_floats(tensor, values, values.shape, dtype, what=f"restored {name}", snippet=text)


def _preparing(case: WeightCase, target: Target) -> str:
    return (
        f"import bittensor\nfrom bittensor_conformance.linear_cases import *\nbackend = bittensor.get_backend("
        f"{target.name!r})\nprint(backend.restore(backend.prepare({source(case)}.quantized())))"
    )
