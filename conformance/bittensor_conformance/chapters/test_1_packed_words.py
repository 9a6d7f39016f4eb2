"""docs/numerics.md, section 1: packed words."""

from __future__ import annotations

from math import prod

import torch

from ..cases import PackCase, UnpackCase
from ..catalogue import check
from ..fills import Fill
from ..layouts import LAYOUTS
from ..scripts import CONCURRENT, NEW_MEMORY, holds, on_threads
from ..strategies import COLUMNS, LEADING, pack_cases, unpack_cases
from ..targets import Target

_WHOLE_BLOCKS = (512, 1024, 4096)
"""Lengths that leave no remainder, whatever a backend cuts a row into."""


@check("pack")
def test_pack_matches_the_oracle(target: Target, bits: int) -> None:
    """Any codes, shape and strides: the words are the oracle's."""
    target.for_all(pack_cases(bits), lambda case: case.run(target.name))


@check("unpack")
def test_unpack_matches_the_oracle(target: Target, bits: int) -> None:
    """Any words, shape and strides: the codes are the oracle's."""
    target.for_all(unpack_cases(bits), lambda case: case.run(target.name))


@check("pack")
def test_pack_places_every_code(target: Target, bits: int) -> None:
    """Each value alone in each place of a word: order within the word, the sign bit, and nothing spilled."""
    # Stated apart from the oracle: value * 2**(bits * place), as a signed 64-bit number.
    for place in range(64 // bits):
        words = [value << (bits * place) for value in range(2**bits)]
        signed = [[word - 2**64 if word >= 2**63 else word] for word in words]
        holds(target, _PACKS_ALONE, bits=bits, place=place, words=signed)


@check("unpack")
def test_unpack_finds_every_code(target: Target, bits: int) -> None:
    """Each value alone in each place of a word is found there, the sign bit's place included."""
    for place in range(64 // bits):
        holds(target, _FINDS_ALONE, bits=bits, place=place)


@check("pack")
def test_pack_every_length(target: Target, bits: int) -> None:
    """Rows of 0 to 200 codes and of whole blocks, all the largest: unused bits are 0, every row starts a new word."""
    target.run([PackCase(bits, columns, (3,), Fill("max")) for columns in range(201)])
    target.run([PackCase(bits, columns, (3,), Fill("max")) for columns in _WHOLE_BLOCKS], always=True)


@check("unpack")
def test_unpack_every_length(target: Target, bits: int) -> None:
    """Rows of 0 to 200 codes and of whole blocks, all the largest."""
    target.run([UnpackCase(bits, columns, (3,), Fill("max")) for columns in range(201)])
    target.run([UnpackCase(bits, columns, (3,), Fill("max")) for columns in _WHOLE_BLOCKS], always=True)


@check("pack")
def test_pack_each_layout(target: Target, bits: int) -> None:
    """The same shapes in every stride pattern."""
    shapes = [((), 5), ((3,), 17), ((2, 3), 64), ((2, 1, 3), 9)]
    target.run(
        [PackCase(bits, columns, leading, layout=layout) for leading, columns in shapes for layout in LAYOUTS],
        always=True,
    )


@check("unpack")
def test_unpack_each_layout(target: Target, bits: int) -> None:
    """The same shapes in every stride pattern."""
    shapes = [((), 5), ((3,), 300), ((2, 3), 64), ((2, 1, 3), 9)]
    target.run(
        [UnpackCase(bits, columns, leading, layout=layout) for leading, columns in shapes for layout in LAYOUTS],
        always=True,
    )


@check("pack")
def test_pack_empty(target: Target, bits: int) -> None:
    """No rows, no columns, or neither: an empty result of the right shape."""
    empty = [PackCase(bits, columns, leading) for columns in COLUMNS for leading in LEADING if 0 in (*leading, columns)]
    target.run(empty)


@check("unpack")
def test_unpack_empty(target: Target, bits: int) -> None:
    """No rows, no columns, or neither: an empty result of the right shape."""
    cases = [UnpackCase(bits, columns, leading) for columns in COLUMNS for leading in LEADING]
    target.run([case for case in cases if 0 in (*case.leading, case.columns)])


@check("unpack")
def test_unpack_ignores_unused_bits(target: Target, bits: int) -> None:
    """Garbage above the last code of a row changes nothing."""
    cases = [
        UnpackCase(bits, columns, (2, 3), Fill(seed=columns), poison=seed)
        for columns in range(1, 140)
        for seed in range(2)
    ]
    target.run(cases)


@check("unpack")
def test_unpack_tensor_has_rows_and_columns(target: Target, bits: int) -> None:
    """`unpack_tensor` folds the leading dimensions into rows."""
    for leading in LEADING:
        holds(target, _FOLDS, bits=bits, leading=leading, rows=prod(leading))


@check("pack", requires=("unpack",))
def test_pack_round_trip(target: Target, bits: int) -> None:
    """What is packed here and unpacked here is what it was."""
    for columns in COLUMNS:
        holds(target, _ROUND_TRIP, bits=bits, columns=columns)


@check("pack")
def test_packed_words_are_new_memory(target: Target, bits: int) -> None:
    """A later call does not change what an earlier one returned."""
    for columns in (1, 17, 65, 513):
        cases = [PackCase(bits, columns, (5,), Fill(seed=seed)) for seed in (1, 2)]
        holds(target, NEW_MEMORY, case=cases[0], other=cases[1])


@check("unpack")
def test_unpacked_codes_are_new_memory(target: Target, bits: int) -> None:
    """A later call does not change what an earlier one returned."""
    for columns in (1, 17, 65, 513):
        cases = [UnpackCase(bits, columns, (5,), Fill(seed=seed)) for seed in (1, 2)]
        holds(target, NEW_MEMORY, case=cases[0], other=cases[1])


@check("pack")
def test_pack_is_the_same_on_any_number_of_threads(target: Target, bits: int) -> None:
    """One large matrix, 1 to 3 threads, by rows long and short, with and without unused bits: the oracle's words."""
    threads = torch.get_num_threads()
    try:
        for rows, columns in ((1, 200_001), (3001, 65), (70_003, 3), (3, 40_000)):
            for count in (1, 2, 3):
                # Other codes each time: memory that is left as it was may hold the words of the last call.
                case = PackCase(bits, columns, (rows,), Fill(seed=rows + count))
                torch.set_num_threads(count)
                case.run(target.name, before=on_threads(count))
                target.examples += 1
    finally:
        torch.set_num_threads(threads)


@check("unpack")
def test_unpack_is_the_same_on_any_number_of_threads(target: Target, bits: int) -> None:
    """One large matrix, 1 to 3 threads, by rows long and short, with and without unused bits: the oracle's codes."""
    threads = torch.get_num_threads()
    try:
        for rows, columns in ((1, 200_001), (3001, 65), (70_003, 3), (3, 40_000)):
            for count in (1, 2, 3):
                case = UnpackCase(bits, columns, (rows,), Fill(seed=rows + count))
                torch.set_num_threads(count)
                case.run(target.name, before=on_threads(count))
                target.examples += 1
    finally:
        torch.set_num_threads(threads)


@check("unpack")
def test_concurrent_calls_do_not_disturb_each_other(target: Target, bits: int) -> None:
    """Calls from four Python threads at once: no scratch memory is shared between them."""
    for rows, columns in ((5, 65), (300, 700)):
        cases = tuple(UnpackCase(bits, columns, (rows,), Fill(seed=seed)) for seed in range(4))
        holds(target, CONCURRENT, cases=cases, backend=target.name)


_PACKS_ALONE = """
codes = torch.zeros((2**bits, 64 // bits), dtype=torch.uint8)
codes[:, place] = torch.arange(2**bits)
same(bittensor.pack_weights(codes, bits), torch.tensor(words))
"""
_FINDS_ALONE = """
codes = torch.zeros((2**bits, 64 // bits), dtype=torch.uint8)
codes[:, place] = torch.arange(2**bits)
words = torch.from_numpy(oracle.pack(codes.numpy(), bits))
same(bittensor.unpack_weights(words, 64 // bits, bits), codes)
"""
_FOLDS = """
codes = Fill(seed=rows).codes((*leading, 17), bits)
words = torch.from_numpy(oracle.pack(codes, bits))
same(bittensor.unpack_tensor(words, rows, 17, bits), codes.reshape(rows, 17))
"""
_ROUND_TRIP = """
codes = torch.from_numpy(Fill(seed=columns).codes((5, columns), bits))
same(bittensor.unpack_weights(bittensor.pack_weights(codes, bits), columns, bits), codes)
"""
