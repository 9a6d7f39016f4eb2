"""Kernels of packed codes, called by name: rows of words, their products in integers, and what is stored of these."""

from __future__ import annotations

import numpy as np
import pytest
from bittensor_cpp import _native
from native_kernels import BLOCK, kernels


def codes_and_words(bits: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Random codes and their words, packed by plain integers."""
    codes = np.random.default_rng(bits).integers(0, 2**bits, (rows, columns), dtype=np.uint8)
    per_word = 64 // bits
    words = [
        [
            sum(int(code) << (bits * i) for i, code in enumerate(row[start : start + per_word]))
            for start in range(0, columns, per_word)
        ]
        for row in codes
    ]
    return codes, np.array(words, dtype=np.uint64)


def planes(codes: np.ndarray, bits: int, shift: int) -> np.ndarray:
    """Codes ``[rows, columns]`` less a shift in the order of `expand_planes`, zeros in the gaps."""
    rows, columns = codes.shape
    per_byte = 8 // bits
    blocks = -(-columns // (BLOCK * per_byte))
    padded = np.zeros((rows, blocks * BLOCK * per_byte), dtype=np.int8)
    padded[:, :columns] = codes.astype(np.int16) - shift
    return padded.reshape(rows, blocks, BLOCK, per_byte).swapaxes(2, 3).reshape(rows, -1).copy()


@kernels("pack_row")
def test_pack_row(name: str, bits: int) -> None:
    codes, words = codes_and_words(bits, 1, 150)
    packed = np.full_like(words, 7)
    seen = _native.pack_row(name, codes[0], 150, packed)
    assert seen == np.bitwise_or.reduce(codes[0])
    np.testing.assert_array_equal(packed, words)


@kernels("unpack_row")
def test_unpack_row(name: str, bits: int) -> None:
    codes, words = codes_and_words(bits, 1, 150)
    unpacked = np.zeros_like(codes)
    _native.unpack_row(name, words, 150, unpacked)
    np.testing.assert_array_equal(unpacked, codes)


@kernels("expand_planes")
def test_expand_planes(name: str, bits: int) -> None:
    codes, words = codes_and_words(bits, 1, 700)
    shift = 128 if bits == 8 else 1
    expected = planes(codes, bits, shift)
    expanded = np.full_like(expected, 99)
    total = _native.expand_planes(name, words, 700, shift, expanded)
    assert total == expected.sum(dtype=np.int64)
    np.testing.assert_array_equal(expanded, expected)


@kernels("integer_dot")
@pytest.mark.parametrize(("fetch", "rows"), [("none", 5), ("by_tiles", 5), ("in_order", 5), ("in_order", 1)])
def test_integer_dot(name: str, bits: int, fetch: str, rows: int) -> None:
    weight, words = codes_and_words(bits, 7, 700)
    x = np.random.default_rng(1).integers(0, 2**bits, (rows, 700), dtype=np.uint8)
    shift = 128 if bits == 8 else 0
    expanded = planes(x, bits, shift)
    acc = np.zeros((rows, BLOCK), dtype=np.int32)
    _native.integer_dot(name, expanded, expanded.shape[1], rows, words, 7, 700, acc, fetch)
    np.testing.assert_array_equal(acc[:, :7], (x.astype(np.int64) - shift) @ weight.astype(np.int64).T)


@kernels("store_codes")
def test_store_codes(name: str, bits: int) -> None:
    acc = np.arange(-20, 44, dtype=np.int32)
    add = np.ones(BLOCK, dtype=np.int32)
    scale = np.full(BLOCK, 0.5, dtype=np.float32)
    expected = np.clip(np.rint((acc + 1 + 2) * 0.5) + 1, 0, 2**bits - 1).astype(np.uint8)[:50]
    words = np.zeros(-(-50 * bits // 64), dtype=np.uint64)
    _native.store_codes(name, acc, add, 2, scale, 1, 50, words)
    stored = [int(words[i * bits // 64]) >> (i * bits % 64) & (2**bits - 1) for i in range(50)]
    np.testing.assert_array_equal(stored, expected)


@kernels("store_sums")
def test_store_sums(name: str, bits: int) -> None:
    acc = np.arange(BLOCK, dtype=np.int32)
    out = np.zeros(50, dtype=np.int32)
    _native.store_sums(name, acc, acc, -5, 50, out)
    np.testing.assert_array_equal(out, 2 * np.arange(50) - 5)
