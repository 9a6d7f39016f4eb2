"""The oracle against arithmetic without NumPy: Python's integers and fractions."""

from __future__ import annotations

from fractions import Fraction
from random import Random

import numpy as np
import pytest
from bittensor_conformance import oracle
from bittensor_conformance.replay import as_json, corpus, from_json

WIDTHS = (1, 2, 4, 8)


@pytest.mark.parametrize("bits", WIDTHS)
def test_packing_is_positional_notation(bits: int) -> None:
    random, per_word = Random(bits), 64 // bits
    for columns in range(140):
        codes = [random.randrange(2**bits) for _ in range(columns)]
        number = sum(code << (bits * place) for place, code in enumerate(codes))
        words = [number >> (64 * word) & (2**64 - 1) for word in range(-(-columns // per_word))]
        packed = oracle.pack(np.array(codes, dtype=np.uint8), bits)
        assert packed.dtype == np.int64
        assert [int(word) % 2**64 for word in packed] == words
        assert oracle.unpack(packed, columns, bits).tolist() == codes
        poisoned = oracle.poison(packed, columns, bits, seed=columns)
        assert oracle.unpack(poisoned, columns, bits).tolist() == codes
        assert (poisoned.tolist() == packed.tolist()) == (columns % per_word == 0)


@pytest.mark.parametrize("bits", WIDTHS)
def test_requantization_rounds_as_ieee_says(bits: int) -> None:
    random = Random(bits)
    for _ in range(3000):
        acc = random.choice((random.randrange(-40, 40), random.randrange(-(2**31), 2**31)))
        scale = float(np.float32(random.choice((0.5, 0.25, 0.1, -0.3, 2.0**-26, 1 / 3, random.uniform(-1e-3, 1e-3)))))
        zero = random.randrange(2**bits)
        product = to_float32(to_float32(Fraction(acc)) * Fraction(scale))
        expected = min(max(round(product) + zero, 0), 2**bits - 1)
        got = oracle.requantize(np.array([acc]), bits, np.float32(scale).reshape(()), zero)
        assert got.tolist() == [expected], (acc, scale, zero)


def test_every_file_of_the_corpus_is_read_and_written_back() -> None:
    weights = {"prepare", "linear", "linear_input_grad"}
    assert {entry.operation for entry in corpus()} == {"pack", "unpack", "packed_matmul", *weights}
    for entry in corpus():
        assert entry.why
        assert from_json(type(entry.case), as_json(entry.case)) == entry.case
        entry.check_oracle()


def to_float32(value: Fraction) -> Fraction:
    """The nearest float32 of normal range, ties to even."""
    if value == 0:
        return value
    exponent = 0
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - 23)
    return round(value / unit) * unit
