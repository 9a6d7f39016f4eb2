"""Kernels of a linear and of its weight, called by name: products, their outputs, and dequantized values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bittensor_cpp import _native
from native_kernels import groups_together, kernels, prepared_weight, quantized

import bittensor
from bittensor import QuantizedWeight


@kernels("int8_linear")
def test_int8_linear(name: str, bits: int) -> None:
    weight, prepared = prepared_weight(bits)
    x = np.random.default_rng(4).standard_normal((3, 40)).astype(np.float32)
    rows = [quantized("quantize_row_scalar", bits, row) for row in x]
    codes, scales, sums = (np.stack(parts) for parts in zip(*rows, strict=True))
    scales, sums = (np.ascontiguousarray(factors.T) for factors in (scales, sums))  # [groups, rows]
    y = np.zeros((3, 32), dtype=np.float32)
    _native.int8_linear(name, prepared, 3, codes, scales, sums, y)
    with bittensor.use_backend("reference"):
        expected = bittensor.linear(torch.from_numpy(x), weight)
    np.testing.assert_array_equal(y[:, :20], expected.numpy())


@kernels("int8_linear")
@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
@pytest.mark.parametrize(
    ("rows", "row_tiles", "next_run"),
    [  # from 9 on of AMX one run, two that share rows, two panels
        (1, 1, False),
        (1, 2, False),
        (1, 3, True),
        (4, 2, True),
        (9, 2, False),
        (9, 2, True),
        (37, 2, False),
        (150, 2, True),
    ],
)
def test_int8_linear_of_one_and_of_many_rows(
    name: str, bits: int, zero: Any, rows: int, row_tiles: int, next_run: bool
) -> None:
    """Groups of 32 and of 136 columns, shorter than a step of AMX and longer than a chunk, with shorter last ones; five
    tiles, which no kernel takes at once or in equal runs."""
    for group_size in (32, 136):
        check_int8_linear(name, bits, zero, rows, 360, group_size, row_tiles, next_run, False)


@kernels("int8_linear")
@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
@pytest.mark.parametrize("rows", [13, 37, 97])
def test_int8_linear_of_rows_that_share_decoded_codes(name: str, bits: int, zero: Any, rows: int) -> None:
    """Few rows or many for every kernel that decodes; groups of which several are decoded at a time, in pairs that
    share a scale of activations or not, with a shorter last one; one that is too long for that."""
    for group_size in (32, 136, 1640):
        check_int8_linear(name, bits, zero, rows, 1640, group_size, 2, False, True)


def check_int8_linear(
    name: str,
    bits: int,
    zero: Any,
    rows: int,
    columns: int,
    group_size: int,
    row_tiles: int,
    next_run: bool,
    decodes: bool,
) -> None:
    """72 outputs of `rows` rows against the reference backend."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, columns, generator=generator)
    weight = bittensor.quantize(torch.randn(72, columns, generator=generator), bits, group_size, zero)
    prepared = bittensor.get_backend("cpp").prepare(weight).tensors[0].numpy()
    groups = [min(group_size, columns - start) for start in range(0, columns, group_size)]
    padded = sum(-(-length // (32 // bits)) * (32 // bits) for length in groups)
    codes = np.zeros((rows, padded), dtype=np.int8)
    activation_group = group_size * groups_together(bits, group_size, zero)
    scales = np.zeros((rows, -(-columns // activation_group)), dtype=np.float32)
    sums = np.zeros((rows, len(groups)), dtype=np.int32)
    for m in range(rows):
        _native.quantize_row("quantize_row_scalar", prepared, x[m].numpy(), "float32", codes[m], scales[m], sums[m])
    scales, sums = (np.ascontiguousarray(factors.T) for factors in (scales, sums))  # [groups, rows]
    y = np.full((rows, 80), np.nan, dtype=np.float32)
    _native.int8_linear(name, prepared, rows, codes, scales, sums, y, row_tiles, next_run, decodes)
    with bittensor.use_backend("reference"):
        expected = bittensor.linear(x, weight)
    np.testing.assert_array_equal(y[:, :72], expected.numpy())


@kernels("int8_linear")
@pytest.mark.parametrize("rows", [1, 3, 5, 40])
def test_int8_linear_of_the_lowest_digits(name: str, bits: int, rows: int) -> None:
    """Codes of -128, which quantized activations never have, and digits do."""
    codes = torch.full((16, 512), 2**bits - 1, dtype=torch.uint8)
    weight = QuantizedWeight.from_codes(codes, torch.ones(16, 1), offsets=torch.zeros(16, 1), bits=bits, group_size=512)
    prepared = bittensor.get_backend("cpp").prepare(weight).tensors[0].numpy()
    x, scales = np.full((rows, 512), -128, dtype=np.int8), np.ones((1, rows), dtype=np.float32)
    sums, y = np.full((1, rows), -128 * 512, dtype=np.int32), np.zeros((rows, 16), dtype=np.float32)
    _native.int8_linear(name, prepared, rows, x, scales, sums, y)
    np.testing.assert_array_equal(y, np.full((rows, 16), -128.0 * 512 * (2**bits - 1), dtype=np.float32))


@kernels("store_outputs")
def test_store_outputs(name: str, bits: int) -> None:
    y = np.linspace(-2, 2, 37, dtype=np.float32)
    bias = np.ones(37, dtype=np.float32)
    out = np.zeros(37, dtype=np.float16)
    _native.store_outputs(name, y, 37, bias, "relu", "float16", out)
    np.testing.assert_array_equal(out, np.maximum(y + 1, 0).astype(np.float16))


def every_kind_of_float() -> np.ndarray:
    """Any bits, values where GELU and SiLU bend, and the neighbours of every special value."""
    rng = np.random.default_rng(7)
    anything = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    bent = np.ldexp(rng.standard_normal(200_000), rng.integers(-30, 8, 200_000)).astype(np.float32)
    ends = [0.0, 2.0**-149, 2.0**-126, 13.15, 87.0, 87.68, 88.0, np.finfo(np.float32).max, np.inf, np.nan]
    special = np.array([sign * value for value in ends for sign in (1, -1)], dtype=np.float32)
    beside = (special.view(np.int32)[:, None] + np.arange(-3, 4, dtype=np.int32)).ravel().view(np.float32)
    return np.concatenate([anything, bent, beside])


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@kernels("store_outputs")
def test_store_outputs_has_the_bits_of_the_reference(name: str, bits: int, activation: str) -> None:
    v = every_kind_of_float()
    zeros, out = np.zeros(len(v), dtype=np.float32), np.zeros(len(v), dtype=np.float32)
    _native.store_outputs(name, zeros, len(v), v, activation, "float32", out)
    weight = bittensor.quantize(torch.zeros(len(v), 1), group_size=None)
    with bittensor.use_backend("reference"):
        expected = bittensor.linear(torch.zeros(1, 1), weight, torch.from_numpy(v), epilogue=activation)[0].numpy()
    different = (out.view(np.int32) != expected.view(np.int32)) & ~(np.isnan(out) & np.isnan(expected))
    assert not different.any(), f"{activation}({v[different][0]!r}) is {out[different][0]!r}, {different.sum()} differ"


@kernels("dequantize_panel")
def test_dequantize_panel(name: str, bits: int) -> None:
    weight, prepared = prepared_weight(bits)
    values = np.full((32, 24 + 16), 99, dtype=np.float32)
    _native.dequantize_panel(name, prepared, 16, 24, values)
    np.testing.assert_array_equal(values[:20, :24], weight.dequantize().numpy()[:, 16:])
    assert not values[20:].any()
    assert not values[:, 24:].any()
    with pytest.raises(ValueError, match="first_column"):
        _native.dequantize_panel(name, prepared, 8, 24, values)


@kernels("dequantize_row")
def test_dequantize_row(name: str, bits: int) -> None:
    weight, prepared = prepared_weight(bits)
    expected = weight.dequantize().numpy()
    for row in range(20):
        values = np.full(40 + 16, 99, dtype=np.float32)
        _native.dequantize_row(name, prepared, row, values)
        np.testing.assert_array_equal(values[:40], expected[row])
    for row in (-1, 20):
        with pytest.raises(ValueError, match="row: expected one of the weight"):
            _native.dequantize_row(name, prepared, row, values)


def check_lanes(multiply: Callable[..., None], name: str, bits: int, mode: str) -> None:
    weight = bittensor.quantize(torch.randn(13, 20), bits=bits, group_size=8, zero="float")
    (prepared,) = weight.prepared_for(bittensor.get_backend("cpp")).tensors
    for positions in (0, 1, 2, 7):
        x = torch.randn(positions, 20, 16)
        y = np.full((positions, 16), 99, dtype=np.float32)
        multiply(name, prepared.numpy(), positions, x.numpy(), y)
        with bittensor.use_backend("cpp:scalar"):
            expected = bittensor.linear(x.transpose(1, 2), weight, None, mode)
        largest_error = 0 if mode == "int8" else 1e-5  # of float32 sums, of which a linear with digits has fewer
        for row in range(13):
            np.testing.assert_allclose(y[:, row], expected[:, row, row].numpy(), rtol=0, atol=largest_error)
    with pytest.raises(ValueError, match="positions: expected at least 0"):
        multiply(name, prepared.numpy(), -1, x.numpy(), y)


@kernels("int8_lanes")
def test_int8_lanes(name: str, bits: int) -> None:
    check_lanes(_native.int8_lanes, name, bits, "int8")
    wide = bittensor.quantize(torch.ones(1, 1 << 17), bits=bits, group_size=1 << 16)
    (prepared,) = wide.prepared_for(bittensor.get_backend("cpp")).tensors
    with pytest.raises(ValueError, match="groups of more columns than are exact"):
        _native.int8_lanes(name, prepared.numpy(), 0, np.zeros(0, np.float32), np.zeros(0, np.float32))


@kernels("float_lanes")
def test_float_lanes(name: str, bits: int) -> None:
    check_lanes(_native.float_lanes, name, bits, "float")


@kernels("panel_product")
def test_panel_product(name: str, bits: int) -> None:
    random = np.random.default_rng(6)
    dy, panel = random.integers(-9, 9, (7, 20)), random.integers(-9, 9, (20, 48))
    sums = np.full((7, 48), 99, dtype=np.float32)
    for continues in (False, True):
        _native.panel_product(name, 7, 20, 3, dy.astype(np.float32), panel.astype(np.float32), continues, sums)
        np.testing.assert_array_equal(sums, (1 + continues) * (dy @ panel))


@kernels("codes_product")
def test_codes_product(name: str, bits: int) -> None:
    weight, prepared = prepared_weight(bits)
    values = weight.dequantize().numpy()
    for rows in range(1, 6):
        dy = np.random.default_rng(rows).standard_normal((rows, 20)).astype(np.float32)
        out = np.full((rows, 40), 99, dtype=np.float32)
        _native.codes_product(name, prepared, rows, dy, out)
        expected = np.zeros((rows, 40), dtype=np.float32)
        for n in range(20):  # a multiply-add: the product is exact in float64
            expected = (dy[:, n : n + 1].astype(np.float64) * values[n] + expected).astype(np.float32)
        np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match="rows: expected at least 1"):
        _native.codes_product(name, prepared, 0, dy, out)
