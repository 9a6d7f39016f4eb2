"""docs/numerics.md, section 1: packed words."""

from __future__ import annotations

from math import prod

import numpy as np
import torch

import bittensor

from .. import oracle
from ..cases import PackCase, UnpackCase
from ..catalogue import check
from ..compare import check_equal, check_result, fail
from ..fills import Fill
from ..layouts import LAYOUTS
from ..strategies import COLUMNS, LEADING, pack_cases, unpack_cases
from ..targets import Target


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
    codes = _each_code_alone(bits)
    text = _packing_snippet("pack_weights", codes, bits, target.name)
    with bittensor.use_backend(target.name):
        packed = bittensor.pack_weights(torch.from_numpy(codes), bits)
    per_word = codes.shape[1]
    # Stated apart from the oracle: value * 2**(bits * place), as a signed 64-bit number.
    alone = [value << (bits * place) for place in range(per_word) for value in range(2**bits)]
    words = np.array(alone, dtype=np.uint64).view(np.int64).reshape(-1, 1)
    check_result(packed, words, what="pack", snippet=text)
    target.examples += len(codes)


@check("unpack")
def test_unpack_finds_every_code(target: Target, bits: int) -> None:
    """Each value alone in each place of a word is found there, the sign bit's place included."""
    codes = _each_code_alone(bits)
    words = oracle.pack(codes, bits)
    text = _packing_snippet("unpack_weights", words, bits, target.name)
    with bittensor.use_backend(target.name):
        unpacked = bittensor.unpack_weights(torch.from_numpy(words), codes.shape[1], bits)
    check_result(unpacked, codes, what="unpack", snippet=text)
    target.examples += len(codes)


@check("pack")
def test_pack_every_length(target: Target, bits: int) -> None:
    """Rows of 0 to 200 codes, all the largest: unused bits are 0, and every row starts a new word."""
    target.run([PackCase(bits, columns, (3,), Fill("max")) for columns in range(201)])


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
        rows, columns = prod(leading), 17
        codes = Fill(seed=rows).codes((*leading, columns), bits)
        words = oracle.pack(codes, bits)
        text = _packing_snippet("unpack_tensor", words, bits, target.name)
        with bittensor.use_backend(target.name):
            matrix = bittensor.unpack_tensor(torch.from_numpy(words), rows, columns, bits)
        check_result(matrix, codes.reshape(rows, columns), what="unpack_tensor", snippet=text)
        target.examples += 1


@check("pack", requires=("unpack",))
def test_pack_round_trip(target: Target, bits: int) -> None:
    """What is packed here and unpacked here is what it was."""
    for columns in COLUMNS:
        codes = Fill(seed=columns).codes((5, columns), bits)
        text = _packing_snippet("pack_weights", codes, bits, target.name)
        with bittensor.use_backend(target.name):
            back = bittensor.unpack_weights(bittensor.pack_weights(torch.from_numpy(codes), bits), columns, bits)
        check_result(back, codes, what="unpack(pack(codes))", snippet=text)
        target.examples += 1


@check("pack")
def test_pack_is_the_same_on_any_number_of_threads(target: Target, bits: int) -> None:
    """One large matrix, 1 to 3 threads, by rows long and short: the oracle's words each time."""
    threads = torch.get_num_threads()
    try:
        for shape in ((1, 300_001), (3001, 65), (100_003, 3)):
            codes = Fill(seed=shape[0]).codes(shape, bits)
            expected = oracle.pack(codes, bits)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                with bittensor.use_backend(target.name):
                    words = bittensor.pack_weights(torch.from_numpy(codes), bits).numpy()
                if words.shape != expected.shape:
                    fail(f"pack: expected shape {expected.shape}, got {words.shape}", repr(PackCase(bits, shape[1])))
                text = f"{PackCase(bits, shape[1], shape[:1], Fill(seed=shape[0]))!r}\ntorch.set_num_threads({count})"
                check_equal(words, expected, what=f"pack on {count} threads", snippet=text)
                target.examples += 1
    finally:
        torch.set_num_threads(threads)


def _each_code_alone(bits: int) -> oracle.Codes:
    """A row for each place and value: that value in that place, 0 elsewhere."""
    per_word = 64 // bits
    codes = np.zeros((per_word, 2**bits, per_word), dtype=np.uint8)
    places = np.arange(per_word)
    codes[places, :, places] = np.arange(2**bits)
    return codes.reshape(-1, per_word)


def _packing_snippet(
    function: str, values: np.ndarray[tuple[int, ...], np.dtype[np.integer]], bits: int, target: str
) -> str:
    shown = values if values.size <= 64 else values[:2]
    return (
        "import bittensor, torch\n"
        f"values = torch.tensor({shown.tolist()}, dtype=torch.{values.dtype})  # of {list(values.shape)}\n"
        f"with bittensor.use_backend({target!r}):\n"
        f"    print(bittensor.{function}(values, ..., bits={bits}))"
    )
