"""The oracle: sections 1 and 2 of docs/numerics.md in NumPy integers.

It is the suite's own. Nothing here calls a backend, torch, or BitTensor's arithmetic, not even to count words, so that
no mistake can be shared. Codes are uint8 arrays, words int64 arrays.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Codes: TypeAlias = npt.NDArray[np.uint8]
Words: TypeAlias = npt.NDArray[np.int64]
Integers: TypeAlias = npt.NDArray[np.int64]
Accumulators: TypeAlias = npt.NDArray[np.int32]
Scales: TypeAlias = npt.NDArray[np.float32]

INT32_MAX = 2**31 - 1
_BITS_OF_A_WORD = 64


def largest_code(bits: int) -> int:
    """Largest value of a code: 1, 3, 15 or 255."""
    return (1 << bits) - 1


def word_count(columns: int, bits: int) -> int:
    """Words in a row of `columns` codes; every row starts a new word."""
    return math.ceil(columns * bits / _BITS_OF_A_WORD)


def pack(codes: Codes, bits: int) -> Words:
    """Code k of a row goes to word k // E, at bits [b*(k % E), b*(k % E) + b); unused high bits are 0."""
    per_word = _BITS_OF_A_WORD // bits
    count = word_count(codes.shape[-1], bits)
    lanes = np.zeros((*codes.shape[:-1], count * per_word), dtype=np.uint64)
    lanes[..., : codes.shape[-1]] = codes
    shifted = lanes.reshape(*codes.shape[:-1], count, per_word) << _shifts(bits)
    words: Words = np.bitwise_or.reduce(shifted, axis=-1).view(np.int64)
    return words


def unpack(words: Words, columns: int, bits: int) -> Codes:
    """Inverse of `pack`. Whatever lies in the unused bits of a row's last word is not looked at."""
    per_word = _BITS_OF_A_WORD // bits
    lanes = (np.ascontiguousarray(words).view(np.uint64)[..., np.newaxis] >> _shifts(bits)) & np.uint64(2**bits - 1)
    rows: Codes = lanes.reshape(*words.shape[:-1], words.shape[-1] * per_word)[..., :columns].astype(np.uint8)
    return rows


def unused_bits(columns: int, bits: int) -> int:
    """Mask of the bits of a row's last word that hold no code, as an unsigned 64-bit number."""
    used = columns * bits % _BITS_OF_A_WORD
    return 0 if used == 0 else (2**_BITS_OF_A_WORD - 1) >> used << used


def poison(words: Words, columns: int, bits: int, seed: int) -> Words:
    """The same codes, with random garbage in the bits that hold none."""
    poisoned = words.copy()
    mask = unused_bits(columns, bits)
    if mask and poisoned.size:
        garbage = np.random.default_rng(seed).integers(0, 2**64, poisoned.shape[:-1], dtype=np.uint64)
        last = poisoned.view(np.uint64)[..., -1]
        # The top bit is always set: a word that is read as signed must not show it.
        last |= (garbage | np.uint64(2**63)) & np.uint64(mask)
    return poisoned


def accumulate(x: Codes, weight: Codes, x_zero: int, weight_zero: int, bias: Integers | None = None) -> Integers:
    """acc[m, n] = sum_k (x[m, k] - x_zero) * (weight[n, k] - weight_zero) + bias[n], in exact integers.

    They are multiplied in float64, which has a fast product and is exact: no sum of these comes near 2**53.
    """
    assert 255 * 255 * x.shape[-1] < 2**53
    acc: Integers = ((x.astype(np.float64) - x_zero) @ (weight.astype(np.float64) - weight_zero).T).astype(np.int64)
    return acc if bias is None else acc + bias


def accumulator_limit(columns: int, bits: int, x_zero: int, weight_zero: int) -> int:
    """Largest magnitude that `columns` products can reach; the bias may take it up to `INT32_MAX`."""
    top = largest_code(bits)
    return columns * max(x_zero, top - x_zero) * max(weight_zero, top - weight_zero)


def saturate(acc: Integers, bits: int) -> Codes:
    """clamp(acc, 0, 2**b - 1)."""
    codes: Codes = np.clip(acc, 0, largest_code(bits)).astype(np.uint8)
    return codes


def requantize(acc: Integers, bits: int, scale: Scales, out_zero: int) -> Codes:
    """clamp(rne(float32(acc) * scale) + out_zero, 0, 2**b - 1).

    Two roundings to float32 happen here, each half to even: of the accumulator (beyond 2**24) and of the one product.
    Everything after `np.rint` is exact where it matters, because the clamp's bounds are small integers.
    """
    with np.errstate(over="ignore", under="ignore"):
        product: npt.NDArray[np.floating[Any]] = acc.astype(np.float32) * scale
    assert product.dtype == np.float32, "the product must be rounded once, to float32"
    shifted = np.rint(product).astype(np.float64) + out_zero
    codes: Codes = np.clip(shifted, 0, largest_code(bits)).astype(np.uint8)
    return codes


def _shifts(bits: int) -> npt.NDArray[np.uint64]:
    return np.arange(0, _BITS_OF_A_WORD, bits, dtype=np.uint64)
