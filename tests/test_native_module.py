"""The native module of the C++ backend: every kernel of its table, called by its own name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bittensor_cpp import _native
from bittensor_reference.epilogues import exp_of_negative, silu
from bittensor_reference.fma import fma

import bittensor
from bittensor import QuantizedWeight

KERNELS = [kernel for kernel in _native.kernel_table() if kernel["supported"]]
BLOCK = 64


def kernels(kind: str) -> Any:
    """Parametrizes a test over the kernels of a kind that this machine can run: all that there are must be there."""
    found = [(kernel["name"], kernel["bits"]) for kernel in KERNELS if kernel["kind"] == kind]
    assert {kernel["isa"] for kernel in KERNELS if kernel["kind"] == kind} == set(_native.supported_isas())
    return pytest.mark.parametrize(("name", "bits"), found, ids=[name for name, _ in found])


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


def test_every_kind_of_kernel_is_called_here() -> None:
    called = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {kernel["kind"] for kernel in KERNELS} <= called


def test_an_unknown_kernel_and_a_short_buffer_are_refused() -> None:
    codes, words = np.zeros(16, dtype=np.uint8), np.zeros(1, dtype=np.uint64)
    with pytest.raises(ValueError, match="unknown kernel"):
        _native.pack_row("pack_row_b4_abacus", codes, 16, words)
    with pytest.raises(ValueError, match="another kind"):
        _native.pack_row("unpack_row_b4_scalar", codes, 16, words)
    with pytest.raises(ValueError, match="words: expected at least 2 values"):
        _native.pack_row("pack_row_b4_scalar", np.zeros(17, dtype=np.uint8), 17, words)


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


def prepared_weight(bits: int) -> tuple[bittensor.QuantizedWeight, np.ndarray]:
    """A weight of 20 rows and 40 columns in groups of 16, and its bytes in the layout of the C++ backend."""
    generator = torch.Generator().manual_seed(bits)
    weight = bittensor.quantize(torch.randn(20, 40, generator=generator), bits, 16, zero="integer")
    return weight, bittensor.get_backend("cpp").prepare(weight).tensors[0].numpy()


def padded_columns(bits: int) -> int:
    """40 columns in groups of 16, 16 and 8, each rounded up to whole blocks."""
    block = 32 // bits
    return sum(-(-columns // block) * block for columns in (16, 16, 8))


def groups_together(bits: int, group_size: int, zero: str = "symmetric") -> int:
    """Groups of a weight that meet one group of activations: docs/numerics.md, section 4."""
    return max(64 // group_size, 1) if bits <= 4 and zero != "float" else 1


def quantized(name: str, bits: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    codes = np.full(padded_columns(bits), 99, dtype=np.int8)
    scales = np.zeros(-(-3 // groups_together(bits, 16)), dtype=np.float32)
    sums = np.zeros(3, dtype=np.int32)
    _native.quantize_row(name, prepared_weight(bits)[1], x, "float32", codes, scales, sums)
    return codes, scales, sums


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
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 360, generator=generator)
    for group_size in (32, 136):
        weight = bittensor.quantize(torch.randn(72, 360, generator=generator), bits, group_size, zero)
        prepared = bittensor.get_backend("cpp").prepare(weight).tensors[0].numpy()
        groups = [min(group_size, 360 - start) for start in range(0, 360, group_size)]
        padded = sum(-(-columns // (32 // bits)) * (32 // bits) for columns in groups)
        codes = np.zeros((rows, padded), dtype=np.int8)
        activation_group = group_size * groups_together(bits, group_size, zero)
        scales = np.zeros((rows, -(-360 // activation_group)), dtype=np.float32)
        sums = np.zeros((rows, len(groups)), dtype=np.int32)
        for m in range(rows):
            _native.quantize_row("quantize_row_scalar", prepared, x[m].numpy(), "float32", codes[m], scales[m], sums[m])
        y = np.full((rows, 80), np.nan, dtype=np.float32)
        _native.int8_linear(
            name,
            prepared,
            rows,
            codes,
            np.ascontiguousarray(scales.T),
            np.ascontiguousarray(sums.T),
            y,
            row_tiles,
            next_run,
        )
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


def in_halves(values: torch.Tensor, add: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The sum of a row by docs/numerics.md, section 8: 16 partial sums that `add` extends, then halves."""
    sums = torch.zeros(16)
    for part in torch.nn.functional.pad(values, (0, -len(values) % 16)).view(-1, 16):
        sums = add(part, sums)
    for half in (8, 4, 2, 1):
        sums = sums[:half] + sums[half:]
    return sums[0]


COLUMNS = (1, 7, 16, 17, 40, 64, 577)


@kernels("normalize_row")
def test_normalize_row(name: str, bits: int) -> None:
    for columns in COLUMNS:
        generator = torch.Generator().manual_seed(columns)
        weight = torch.randn(columns, generator=generator)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = torch.randn(columns, generator=generator).to(dtype)
            out = np.full(columns + 1, 99, dtype=np.float32)
            raw = x.view(torch.uint8).numpy()
            _native.normalize_row(name, raw, columns, str(dtype)[6:], weight.numpy(), 1e-5, out)
            wide = x.float()
            squares = in_halves(wide, lambda part, sums: fma(part, part, sums)).numpy()
            inverse = np.float32(1) / np.sqrt(squares / np.float32(columns) + np.float32(1e-5))
            expected = wide * torch.from_numpy(np.asarray(inverse)) * weight
            np.testing.assert_array_equal(out[:-1], expected.numpy())
            assert out[-1] == 99


@kernels("gate_row")
def test_gate_row(name: str, bits: int) -> None:
    for columns in COLUMNS:
        x = torch.randn(2 * columns, generator=torch.Generator().manual_seed(columns)) * 8
        out = np.full(columns + 1, 99, dtype=np.float32)
        _native.gate_row(name, x.numpy(), columns, "float32", out)
        np.testing.assert_array_equal(out[:-1], (silu(x[:columns]) * x[columns:]).numpy())
        assert out[-1] == 99


@kernels("softmax_row")
def test_softmax_row(name: str, bits: int) -> None:
    for columns in COLUMNS:
        scores = torch.randn(columns, generator=torch.Generator().manual_seed(columns)) * 8
        row = np.full(-(-columns // 16) * 16 + 1, 99, dtype=np.float32)
        row[:columns] = scores.numpy()
        _native.softmax_row(name, row, columns)
        powers = exp_of_negative(scores.max() - scores)
        expected = powers.numpy() * (np.float32(1) / in_halves(powers, torch.add).numpy())
        np.testing.assert_array_equal(row[:columns], expected)
        assert not row[columns:-1].any()
        assert row[-1] == 99
        np.testing.assert_allclose(row[:columns], scores.double().softmax(0).numpy(), rtol=1e-5, atol=1e-30)


@kernels("softmax_row")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_softmax_row_hides_no_broken_score(name: str, bits: int, value: float) -> None:
    for place in (0, 5, 19):
        row = np.linspace(-1, 1, 32, dtype=np.float32)
        row[place] = value
        _native.softmax_row(name, row, 20)
        assert np.isnan(row[:20]).all()


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 37])
@pytest.mark.parametrize("isa", _native.supported_isas())
def test_fused_linear_is_its_parts(isa: str, rows: int, dtype: torch.dtype, mode: str) -> None:
    backend = bittensor.get_backend(f"cpp:{isa}")
    weight = backend.prepare(bittensor.quantize(torch.randn(50, 72), group_size=24))
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 144, generator=generator).to(dtype)[:, :72]  # rows that are apart
    pairs, residual = torch.randn(rows, 144, generator=generator).to(dtype), torch.randn(rows, 50).to(dtype)
    norm = torch.rand(72, generator=generator) + 0.5

    def of_rows(values: torch.Tensor, kernel: str) -> torch.Tensor:
        out = np.zeros((rows, 72), dtype=np.float32)
        for row, result in zip(values.contiguous(), out, strict=True):
            raw, name = row.view(torch.uint8).numpy(), str(dtype).removeprefix("torch.")
            if kernel == "normalize_row":
                _native.normalize_row(f"{kernel}_{isa}", raw, 72, name, norm.numpy(), 1e-5, result)
            else:
                _native.gate_row(f"{kernel}_{isa}", raw, 72, name, result)
        return torch.from_numpy(out)

    def product(values: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        y = backend.linear(values, weight, None, mode, None)
        return (y if added is None else y + added.float()).to(dtype)

    for added in (None, residual):
        fused = backend.fused().linear(x, weight, mode, norm=(norm, 1e-5), residual=added)
        assert torch.equal(fused, product(of_rows(x, "normalize_row"), added))
        fused = backend.fused().linear(pairs, weight, mode, gated=True, residual=added)
        assert torch.equal(fused, product(of_rows(pairs, "gate_row"), added))
        fused = backend.fused().linear(x, weight, mode, residual=added)
        assert torch.equal(fused, product(x.float(), added))
        assert fused.dtype is dtype
