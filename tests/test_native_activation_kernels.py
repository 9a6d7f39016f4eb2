"""Kernels of the activations of a linear, called by name: rows as int8 codes, as float32 and as digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bittensor_cpp import _native
from native_kernels import groups_together, kernels, padded_columns, prepared_weight, quantized

import bittensor


@kernels("quantize_row")
def test_quantize_row(name: str, bits: int) -> None:
    x = np.random.default_rng(2).standard_normal(40).astype(np.float32)
    codes, scales, sums = quantized(name, 4, x)
    amax = np.abs(x).max()  # the three groups of the weight meet one of activations
    expected = np.rint(x * (np.float32(127) / amax))
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(scales, [amax / np.float32(127)])
    np.testing.assert_array_equal(sums, [expected[:16].sum(), expected[16:32].sum(), expected[32:].sum()])


@kernels("quantize_row")
@pytest.mark.parametrize("weight_bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", [8, 16, 32, 96, 256, 264])
@pytest.mark.parametrize("groups", [1, 3, 4, 8, 13, 37])
def test_quantize_row_of_many_groups(name: str, bits: int, weight_bits: int, group_size: int, groups: int) -> None:
    """Kernels take groups of whole vectors together: as many as there are lanes, or at least a quarter of them."""
    generator = np.random.default_rng(group_size + groups)
    for last, bad, dtype in ((group_size, None, "float32"), (5, np.nan, "float16"), (group_size, np.inf, "float32")):
        ends = np.cumsum([group_size] * (groups - 1) + [last])
        columns = int(ends[-1])
        weight = bittensor.quantize(torch.zeros(1, columns), weight_bits, min(group_size, columns))
        prepared = bittensor.get_backend("cpp").prepare(weight).tensors[0].numpy()
        x = generator.standard_normal(ends[-1]).astype(dtype)
        parts = np.split(x, ends[:-1])
        together = groups_together(weight_bits, group_size)
        if groups > 5:
            tiny = ((0, 0), (2.0**-101, 2.0**-24), (-(2.0**-100), -(2.0**-24)))
            for g, of_dtype in enumerate(tiny, start=1):  # groups of activations
                for part in parts[g * together : (g + 1) * together]:
                    part[:] = of_dtype[dtype != "float32"]
        if bad is not None:
            parts[groups // 2][-1] = bad
        block = 32 // weight_bits
        widths = [-(-part.size // block) * block for part in parts]
        codes = np.full(sum(widths), 99, dtype=np.int8)
        scales, sums = np.full(-(-groups // together), 9, dtype=np.float32), np.full(groups, 9, dtype=np.int32)
        _native.quantize_row(name, prepared, x, dtype, codes, scales, sums)
        found_by_group = np.split(codes, np.cumsum(widths)[:-1])
        for g, (part, found, total) in enumerate(zip(parts, found_by_group, sums, strict=True)):
            first = g // together * together
            amax = np.abs(np.concatenate(parts[first : first + together])).max().astype(np.float32)
            is_used = np.isfinite(amax) and amax >= 2.0**-100
            values = part.astype(np.float32)
            expected = np.rint(values * (np.float32(127) / amax)) if is_used else np.zeros_like(values)
            np.testing.assert_array_equal(found, np.pad(expected, (0, found.size - part.size)))
            scale = np.nan if not np.isfinite(amax) else amax / np.float32(127) if is_used else 0
            np.testing.assert_array_equal(scales[g // together], scale)
            assert total == expected.sum()


@kernels("widen_row")
def test_widen_row(name: str, bits: int) -> None:
    x = np.random.default_rng(3).standard_normal(40).astype(np.float16)
    values = np.full(padded_columns(2), 99, dtype=np.float32)
    _native.widen_row(name, prepared_weight(2)[1], x, "float16", values)
    np.testing.assert_array_equal(values, np.concatenate([x, np.zeros(8)]).astype(np.float32))


@kernels("split_row")
@pytest.mark.parametrize("group_size", [8, 32, 40])
@pytest.mark.parametrize("last", [1, 7, 8])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_split_row(name: str, bits: int, group_size: int, last: int, dtype: str) -> None:
    """Digits add up to the whole number nearest to x in units of a power of two, for groups of every magnitude."""
    generator = np.random.default_rng(group_size + last)
    # 8355711 is the largest number of three digits that are at most 127.
    largest = (1.0, 0.0, 2.0**-101, 2.0**-100, 3e38, 8355711.0, 8355712.0, np.nan, np.inf, 2.0**-14)
    largest = tuple(float(np.float16(min(each, 6e4))) for each in largest) if dtype == "float16" else largest
    columns = group_size * len(largest) + last
    weight = bittensor.quantize(torch.zeros(1, columns), 8, group_size, zero="integer")  # whose groups share nothing
    prepared = bittensor.get_backend("cpp").prepare(weight).tensors[0].numpy()
    x = (2 * generator.random(columns) - 1).astype(dtype)
    for g, each in enumerate(largest):
        group = x[g * group_size : (g + 1) * group_size]
        with np.errstate(invalid="ignore", under="ignore"):
            group *= np.dtype(dtype).type(each if np.isfinite(each) else 1)
        group[g % group_size] = each
    parts = np.split(x, np.arange(group_size, columns, group_size))
    widths = [-(-part.size // 4) * 4 for part in parts]
    codes, scales = np.full((3, sum(widths)), 99, dtype=np.int8), np.full((3, len(parts)), 9, dtype=np.float32)
    sums = np.full((3, len(parts)), 9, dtype=np.int32)
    _native.split_row(name, prepared, x, dtype, codes, scales, sums)
    for part, digits, scale, total in zip(
        parts, np.split(codes, np.cumsum(widths)[:-1], axis=1), scales.T, sums.T, strict=True
    ):
        values = part.astype(np.float64)
        amax = np.abs(values).max()
        np.testing.assert_array_equal(total, digits.sum(axis=1, dtype=np.int64))
        assert not digits[:, part.size :].any()
        if not np.isfinite(amax) or amax < 2.0**-100:
            assert not digits.any()
            np.testing.assert_array_equal(scale, np.full(3, np.nan if not np.isfinite(amax) else 0.0))
            continue
        unit = 2.0 ** np.ceil(np.log2(amax / 8355711))
        unit = 2 * unit if amax > 8355711 * unit else unit / 2 if amax <= 8355711 * unit / 2 else unit
        np.testing.assert_array_equal(scale, [unit, 256 * unit, 65536 * unit])
        whole = digits[:, : part.size].astype(np.int64)
        np.testing.assert_array_equal(whole[0] + 256 * whole[1] + 65536 * whole[2], np.rint(values / unit))


@kernels("add_digits")
def test_add_digits(name: str, bits: int) -> None:
    y = np.random.default_rng(5).standard_normal((15, 48)).astype(np.float32)
    parts = y.reshape(5, 3, 48).copy()
    _native.add_digits(name, y, 5, 48)
    np.testing.assert_array_equal(y[:5], (parts[:, 0] + parts[:, 1]) + parts[:, 2])
