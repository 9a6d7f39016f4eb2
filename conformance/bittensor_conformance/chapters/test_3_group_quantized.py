"""docs/numerics.md, section 3: group-quantized weights, prepared, restored and dequantized."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, product

import torch

from ..catalogue import check
from ..fills import Fill
from ..float_fills import SCALE_STYLES, FloatFill
from ..layouts import LAYOUTS
from ..linear_cases import TORCH_DTYPES
from ..linear_strategies import FLOAT_DTYPES, OUTPUTS, scope, shapes_of_groups, weight_cases
from ..scripts import holds, on_threads
from ..targets import Target


@check("prepare")
def test_restored_weight_is_the_weight(target: Target, bits: int) -> None:
    """Any weight, prepared and restored: the same words, scales, zeros and offsets to the bit."""
    cases = weight_cases(bits, scope(target.capabilities), any_layout=True)
    target.for_all(cases, lambda case: case.run(target.name))


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
    target.run(cases)


@check("prepare")
def test_restored_weight_in_each_layout(target: Target, bits: int) -> None:
    """Words, scales, zeros and offsets in any strides."""
    within = scope(target.capabilities)
    cases = [
        within.weight(bits, 19, 70, 16, zero, dtype, poison=1, layout=layout)
        for layout, zero, dtype in product(LAYOUTS, within.zeros, within.scale_dtypes)
    ]
    target.run(cases)


@check("prepare")
def test_restored_scales_keep_every_bit(target: Target, bits: int) -> None:
    """Scales and offsets of every magnitude and sign, subnormals and the zero of either sign included."""
    within = scope(target.capabilities)
    cases = [
        within.weight(bits, 5, 40, 8, zero, dtype, scales=FloatFill(style, 7), offsets=FloatFill(style, 8))
        for zero, dtype in product(within.zeros, within.scale_dtypes)
        for style in ("zero", "wide", "subnormal", "huge")
    ]
    target.run(cases)


@check("prepare")
def test_restored_weight_is_the_same_on_any_number_of_threads(target: Target, bits: int) -> None:
    """A large weight, prepared and restored on 1 to 3 threads."""
    within = scope(target.capabilities)
    threads = torch.get_num_threads()
    try:
        for count, (n, k) in product((1, 2, 3), ((1030, 90), (18, 4100))):
            torch.set_num_threads(count)
            # Other codes each time: memory that is left as it was may hold the words of the last call.
            case = within.weight(bits, n, k, 32, within.zeros[-1], codes=Fill(seed=count))
            case.run(target.name, before=on_threads(count))
            target.examples += 1
    finally:
        torch.set_num_threads(threads)


@check("prepare")
def test_weights_of_one_form_stay_apart(target: Target, bits: int) -> None:
    """Two weights of one form, prepared and then restored: each is itself, also where they share the words."""
    within = scope(target.capabilities)
    for zero, n in product(within.zeros, (17, 600)):
        first = within.weight(bits, n, 40, 8, zero)
        for second in (
            replace(first, codes=Fill(seed=9), scales=FloatFill(seed=9), zeros=Fill(seed=8), offsets=FloatFill(seed=8)),
            replace(first, scales=FloatFill(seed=9)),
        ):
            holds(target, _APART, first=first, second=second)


@check("prepare")
def test_restored_weight_of_more_rows_than_16_bits(target: Target, bits: int) -> None:
    """More than 2**16 rows."""
    target.run([scope(target.capabilities).weight(bits, 70_000, 9, 8)], always=True)


@check("prepare")
def test_prepared_weight_says_what_it_is(target: Target, bits: int) -> None:
    """Form and layout of a prepared weight are those of the weight and of the capabilities."""
    within = scope(target.capabilities)
    for zero, dtype in product(within.zeros, within.scale_dtypes):
        holds(target, _FORM, case=within.weight(bits, 17, 40, 16, zero, dtype), dtype=TORCH_DTYPES[dtype])


@check("prepare", requires=("unpack",))
def test_dequantized_weight_matches_the_oracle(target: Target, bits: int) -> None:
    """A product and a sum in float32, then the cast: to each dtype, before preparing and after restoring."""
    within = scope(target.capabilities)
    for zero, dtype, style in product(within.zeros, within.scale_dtypes, SCALE_STYLES):
        case = within.weight(bits, 17, 75, 24, zero, dtype, scales=FloatFill(style, 1), offsets=FloatFill(style, 2))
        for name in FLOAT_DTYPES:
            holds(target, _DEQUANTIZED, case=case, name=name, dtype=TORCH_DTYPES[name])


_APART = """
backend = bittensor.current_backend()
given = first.quantized(), second.quantized(words=first.placed["words"].tensor if second.codes == first.codes else
                                            second.placed["words"].tensor)
prepared = [backend.prepare(weight) for weight in given]
restored = [backend.restore(weight) for weight in prepared]
for weight, back in zip(given, restored):
    assert back.equal(weight), "restored: another weight than was prepared"
"""
_FORM = """
backend = bittensor.current_backend()
prepared = backend.prepare(case.quantized())
form = tuple(getattr(prepared.form, name) for name in ("shape", "bits", "group_size", "zero", "scale_dtype"))
expected = ((17, 40), case.bits, case.group_size or 40, case.zero, dtype)
assert form == expected, f"prepare: expected a form of {expected}, got {form}"
layout = backend.capabilities.layout
assert prepared.layout == layout, f"prepare: expected layout {layout!r}, got {prepared.layout!r}"
"""
_DEQUANTIZED = """
expected = oracle_linear.dequantize(case.weight, name)
for weight in (case.quantized(), case.call()):
    values = weight.dequantize(dtype)
    assert values.dtype is dtype
    same(values.float(), expected)
"""
