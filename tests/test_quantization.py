"""`quantize` and `QuantizedWeight`: every kind and method against plain NumPy, bounds, round trips, refusals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bittensor
from bittensor import QuantizedWeight, quantization, quantize

BITS = (2, 4, 8)
ZEROS = ("symmetric", "integer", "float")
METHODS = ("rtn", "mse", "hqq")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
RAGGED = ((1, 1, None), (3, 13, 13), (5, 37, 16))
"""Rows, columns, group size. The last group may be shorter; None is the whole row."""

Array: TypeAlias = Any
"""A NumPy array; this package's type checks do not cover NumPy."""

EPSILON = 2.0**-20
"""Slack of comparisons of errors that are computed here in float64 and there in float32."""


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def heavy_tailed(rows: int, columns: int) -> torch.Tensor:
    return gaussian(rows, columns) / gaussian(rows, columns, seed=1).abs().clamp(min=1e-3)


def shifted(rows: int, columns: int) -> torch.Tensor:
    """Gaussian with a different mean and spread in every row, and a few outlying columns: as in trained layers."""
    weight = gaussian(rows, columns) * torch.linspace(0.1, 3, rows)[:, None] + gaussian(rows, 1, seed=2)
    weight[:, ::29] *= 6
    return weight


WEIGHTS = {"gaussian": gaussian, "heavy_tailed": heavy_tailed, "shifted": shifted}


@pytest.fixture(params=product(BITS, ZEROS), ids=lambda each: f"{each[0]}-{each[1]}")
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    bits, zero = request.param
    return {"bits": bits, "zero": zero}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def of_columns(quantized: QuantizedWeight, parameter: torch.Tensor) -> Array:
    """A parameter ``[N, G]`` repeated for every column: float32 ``[N, K]``."""
    groups = np.arange(quantized.shape[1]) // quantized.group_size
    return parameter.to(torch.float32).numpy()[:, groups]


def dequantized_by_numpy(quantized: QuantizedWeight) -> Array:
    codes = bittensor.unpack_weights(quantized.words, quantized.shape[1], quantized.bits).numpy().astype(np.float32)
    scales = of_columns(quantized, quantized.scales)
    if quantized.zeros is not None:
        return scales * (codes - of_columns(quantized, quantized.zeros))
    if quantized.offsets is not None:
        return scales * codes + of_columns(quantized, quantized.offsets)
    return scales * (codes - np.float32(2 ** (quantized.bits - 1)))


def error(quantized: QuantizedWeight, weight: torch.Tensor, power: float = 2.0) -> Array:
    """Sum of ``abs(error) ** power`` of each row."""
    difference = dequantized_by_numpy(quantized).astype(np.float64) - weight.to(torch.float64).numpy()
    return (np.abs(difference) ** power).sum(axis=1)


def in_steps(quantized: QuantizedWeight, weight: torch.Tensor) -> Array:
    """Absolute errors in steps of the scale; 0 where both are 0."""
    difference = np.abs(dequantized_by_numpy(quantized).astype(np.float64) - weight.to(torch.float64).numpy())
    scales = np.abs(of_columns(quantized, quantized.scales)).astype(np.float64)
    return np.divide(difference, scales, out=np.where(difference == 0, 0.0, np.inf), where=scales != 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_every_combination(kind: dict[str, Any], method: str, scale_dtype: torch.dtype) -> None:
    for rows, columns, group_size in RAGGED:
        weight = gaussian(rows, columns)
        quantized = quantize(weight, group_size=group_size, method=method, scale_dtype=scale_dtype, **kind)
        width = columns if group_size is None else group_size
        grouped = (rows, -(-columns // width))
        assert quantized.shape == (rows, columns)
        assert (quantized.bits, quantized.group_size, quantized.zero) == (kind["bits"], width, kind["zero"])
        assert (quantized.scales.dtype, quantized.scales.shape) == (scale_dtype, grouped)
        assert quantized.words.shape == (rows, -(-columns * kind["bits"] // 64))
        for dtype in DTYPES:
            expected = torch.from_numpy(dequantized_by_numpy(quantized)).to(dtype)
            assert torch.equal(quantized.dequantize(dtype), expected)
        if columns == 1:
            assert torch.allclose(quantized.dequantize(), weight, rtol=2.0**-8, atol=0)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_error_of_rounding_is_half_a_step(kind: dict[str, Any], name: str, scale_dtype: torch.dtype) -> None:
    weight = WEIGHTS[name](16, 200)
    quantized = quantize(weight, group_size=32, scale_dtype=scale_dtype, **kind)
    steps = in_steps(quantized, weight)
    if kind["zero"] == "symmetric":
        position = weight.numpy() / of_columns(quantized, quantized.scales)
        half = 2 ** (kind["bits"] - 1)
        inside = (position >= -half - 0.5) & (position <= half - 0.5)
        assert inside.mean() > 0.9
        assert (steps[~inside] <= 1 + 2.0**-7 * half).all()
        steps = steps[inside]
    assert steps.max() <= 0.5 + 1e-3


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("group_size", [8, 32, None])
def test_search_promises(kind: dict[str, Any], name: str, group_size: int | None) -> None:
    weight = WEIGHTS[name](8, 128)
    made = {method: quantize(weight, group_size=group_size, method=method, **kind) for method in METHODS}
    squared = {method: error(each, weight) for method, each in made.items()}
    assert (squared["mse"] <= squared["rtn"] * (1 + EPSILON)).all()
    assert squared["mse"].sum() < squared["rtn"].sum()
    forgiving = {method: error(each, weight, power=1.5) for method, each in made.items()}
    assert (forgiving["hqq"] <= forgiving["rtn"] * (1 + 1e-4)).all()
    assert forgiving["hqq"].sum() < forgiving["rtn"].sum()


def test_half_quadratic_comes_near_the_minimum() -> None:
    """Beside every grid with ends in 60 x 60 places: the sum over groups is at most 3 % above the least there is."""
    weight = gaussian(24, 32)
    least = torch.full((24,), torch.inf, dtype=torch.float64)
    places = torch.linspace(0.5, 1.1, 60, dtype=torch.float64)
    center, low, high = weight.double().mean(dim=1), weight.amin(dim=1), weight.amax(dim=1)
    for below, above in product(places, places):
        start, end = center + below * (low - center), center + above * (high - center)
        offset, scale = start[:, None], (end - start)[:, None] / 15
        codes = ((weight - offset) / scale).round().clamp(0, 15)
        least = torch.minimum(least, (weight - (codes * scale + offset)).abs().pow(1.5).sum(dim=1))
    found = {method: error(quantize(weight, 4, 32, "float", method), weight, 1.5).sum() for method in METHODS}
    assert found["hqq"] < 1.03 * least.sum()
    assert found["mse"] > found["hqq"]
    assert found["rtn"] > 1.1 * least.sum()


def test_searches_gain_on_gaussian_weights() -> None:
    """Relative errors of 4 bits in groups of 128, as published for absmax and clipped grids: 10 and 9.5 %."""
    weight = gaussian(64, 1024)
    total = weight.double().square().sum().item()
    relative = {
        (zero, method): (error(quantize(weight, zero=zero, method=method), weight).sum() / total) ** 0.5
        for zero, method in product(ZEROS, METHODS)
    }
    for zero in ZEROS:
        assert 0.095 < relative[zero, "rtn"] < 0.105
        assert relative[zero, "mse"] < 0.96 * relative[zero, "rtn"]
    assert relative["float", "mse"] < relative["integer", "mse"] < relative["symmetric", "mse"]


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("zero", ["symmetric", "integer"])
def test_weights_on_a_grid_are_exact(zero: str, method: str, scale_dtype: torch.dtype) -> None:
    """A group that uses both ends of its grid; products of a short scale and a code are exact in float32."""
    for bits in BITS:
        codes = torch.randint(0, 2**bits, (6, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
        codes[:, ::8], codes[:, 1::8] = 0, 2**bits - 1
        scales = (gaussian(6, 5).abs() + 0.01).to(scale_dtype)
        zeros = torch.full((6, 5), 2**bits // 3, dtype=torch.uint8) if zero == "integer" else None
        made = QuantizedWeight.from_codes(codes, scales, zeros, group_size=8, bits=bits)
        again = quantize(made.dequantize(), bits, 8, zero, method, scale_dtype)
        assert torch.equal(again.dequantize(), made.dequantize())
        assert again.equal(made)


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", BITS)
def test_symmetric_rounding_is_idempotent(bits: int, scale_dtype: torch.dtype) -> None:
    """What it returned lies on a grid that it finds again, whichever end of it the largest value had reached."""
    weight = gaussian(16, 100)
    once = quantize(weight, bits, 16, scale_dtype=scale_dtype).dequantize()
    assert torch.equal(quantize(once, bits, 16, scale_dtype=scale_dtype).dequantize(), once)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_and_constant_groups(kind: dict[str, Any], method: str, dtype: torch.dtype) -> None:
    weight = torch.zeros(4, 24, dtype=dtype)
    weight[0, 8:16] = 0.3
    weight[1, :8] = -0.7
    weight[2] = 3.0
    quantized = quantize(weight, group_size=8, method=method, **kind)
    assert torch.equal(quantized.dequantize(dtype), weight)
    assert not quantized.scales[3].any()
    assert not quantized.dequantize()[3].signbit().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_groups_are_exact_whatever_the_constant(kind: dict[str, Any], dtype: torch.dtype) -> None:
    """Normal numbers of float16, down to those of which a part is subnormal, and as many of the others."""
    if dtype is torch.float16:
        constants = torch.arange(0x0400, 0x7C00, 61, dtype=torch.int16).view(dtype)
    else:
        constants = (gaussian(1, 500)[0] * torch.exp2(torch.randint(-60, 60, (500,)))).to(dtype)
    weight = torch.cat([constants, -constants]).unsqueeze(1).expand(-1, 8)
    for method in METHODS:
        assert torch.equal(quantize(weight, group_size=None, method=method, **kind).dequantize(dtype), weight)


def test_mse_has_the_least_squared_error_of_the_methods(kind: dict[str, Any]) -> None:
    """All but: searches end in different minima."""
    for weight in (gaussian(32, 256), heavy_tailed(32, 256)):
        for group_size in (32, 128):
            errors = [
                float((quantize(weight, group_size=group_size, method=method, **kind).dequantize() - weight).norm())
                for method in ("mse", "hqq", "rtn")
            ]
            assert errors[0] <= 1.01 * errors[1]
            assert errors[0] <= errors[2]


@pytest.mark.parametrize("method", METHODS)
def test_weights_near_the_largest_number(method: str, kind: dict[str, Any]) -> None:
    """No search may end with a scale of which a multiple is infinite."""
    weight = gaussian(4, 64)
    weight = weight / weight.abs().max() * 1.6e38
    error = (quantize(weight, group_size=32, method=method, **kind).dequantize() / 1.6e38 - weight / 1.6e38).abs()
    assert float(error.max()) < 0.6


@pytest.mark.parametrize("method", METHODS)
def test_a_large_mean_needs_the_offset(method: str) -> None:
    """The offset is rounded before the scale is chosen, which then makes up for what the rounding moved."""
    weight = 1 + gaussian(4, 64).abs() / 100
    quantized = quantize(weight, group_size=32, zero="float", method=method, scale_dtype=torch.bfloat16)
    if method == "rtn":
        assert in_steps(quantized, weight).max() <= 0.5 + 1e-3
    assert (quantized.dequantize() - weight).abs().max() <= 2.0**-8


def test_row_order_and_block_size_do_not_matter(kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy_tailed(12, 40)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    for method in METHODS:
        expected = quantize(weight, group_size=16, method=method, **kind)
        permuted = quantize(weight[order], group_size=16, method=method, **kind)
        assert torch.equal(permuted.words, expected.words[order])
        assert torch.equal(permuted.scales, expected.scales[order])
        for rows in (1, 5):
            with monkeypatch.context() as patch:
                patch.setattr(quantization, "_BLOCK_ELEMENTS", rows * 40)
                assert quantize(weight, group_size=16, method=method, **kind).equal(expected)


@pytest.mark.parametrize("zero", ZEROS)
def test_threads_do_not_matter(zero: str, threads: None) -> None:
    """Also not for a lone group so long that torch would sum it in parallel."""
    weight = heavy_tailed(2, 70_000)
    torch.set_num_threads(1)
    expected = quantize(weight, group_size=None, zero=zero, method="mse")
    torch.set_num_threads(2)
    for row in range(2):
        alone = quantize(weight[row : row + 1], group_size=None, zero=zero, method="mse")
        assert torch.equal(alone.words[0], expected.words[row])
        assert torch.equal(alone.scales[0], expected.scales[row])


def test_any_strides_and_dtypes(kind: dict[str, Any]) -> None:
    weight = gaussian(12, 40)
    for dtype in DTYPES:
        given_weight = weight.to(dtype)
        expected = quantize(given_weight.float(), group_size=8, scale_dtype=dtype, **kind)
        assert quantize(given_weight, group_size=8, **kind).equal(expected)
        transposed = given_weight.T.contiguous().T
        assert quantize(transposed, group_size=8, **kind).equal(expected)
        assert quantize(given_weight.repeat_interleave(2, 1)[:, ::2], group_size=8, **kind).equal(expected)
        parameter = torch.nn.Parameter(given_weight.clone())
        quantized = quantize(parameter, group_size=8, **kind)
        assert quantized.equal(expected)
        assert not quantized.scales.requires_grad
        assert torch.equal(parameter, given_weight), "quantize must not write to its argument"


@pytest.mark.parametrize(
    ("scale_dtype", "exponent"),
    [*product(DTYPES, [-149, -126, -24, -14, 12]), (torch.bfloat16, 100), (torch.float32, 100)],
)
def test_every_magnitude(kind: dict[str, Any], scale_dtype: torch.dtype, exponent: int) -> None:
    """Steps may be subnormal numbers of the dtype, whose spacing is wide; the bound of half a step holds there too."""
    weight = torch.ldexp(gaussian(4, 32) * 25, torch.tensor(exponent))
    for method in ("rtn", "mse"):
        quantized = quantize(weight, group_size=16, method=method, scale_dtype=scale_dtype, **kind)
        assert quantized.scales.isfinite().all()
        assert quantized.dequantize().isfinite().all()
        if method == "rtn" and kind["zero"] != "symmetric":
            assert in_steps(quantized, weight).max() <= 0.5 + 1e-3
        assert (quantized.dequantize() - weight).abs().max() <= max(float(weight.abs().max()), 2.0**-25)


def test_refuses_what_the_dtype_cannot_hold() -> None:
    weight = torch.ones(3, 24)
    weight[2, 9] = 1e6
    message = r"weight: group 1 of row 2 is too large for a scale or offset of float16 \(up to 6.55e\+04\).*bfloat16"
    for method, zero in product(METHODS, ("symmetric", "integer")):
        with pytest.raises(ValueError, match=message):
            quantize(weight, group_size=8, method=method, zero=zero, scale_dtype=torch.float16)
    with pytest.raises(ValueError, match="group 0 of row 0 is too large for a scale or offset of float16"):
        quantize(weight - 1e5, group_size=8, zero="float", scale_dtype=torch.float16)
    assert quantize(weight, group_size=8, scale_dtype=torch.bfloat16).scales.isfinite().all()
    ends = torch.tensor([[-3.4e38, 3.4e38, 0.0, 1.0]])
    with pytest.raises(ValueError, match=r"of float32 \(up to 3.4e\+38\); scale the weight down$"):
        quantize(ends, group_size=None, zero="float")


@settings(max_examples=40, deadline=None)
@given(data=st.data(), bits=st.sampled_from(BITS), zero=st.sampled_from(ZEROS), dtype=st.sampled_from(DTYPES))
def test_arbitrary_weights(data: st.DataObject, bits: int, zero: str, dtype: torch.dtype) -> None:
    """Any finite float16 values, subnormal and extreme ones too: finite parameters, and errors within bounds."""
    finite = st.floats(width=16, allow_nan=False, allow_infinity=False, min_value=-60000, max_value=60000)
    columns = data.draw(st.integers(1, 20))
    row = st.lists(finite, min_size=columns, max_size=columns)
    weight = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=3)), dtype=torch.float32)
    group_size = 8 if columns >= 8 else None
    rounded = quantize(weight, bits, group_size, zero, "rtn", dtype)
    searched = quantize(weight, bits, group_size, zero, "mse", dtype)
    assert (error(searched, weight) <= error(rounded, weight) * (1 + 1e-4) + 1e-30).all()
    assert in_steps(rounded, weight).max() <= (1.5 if zero == "symmetric" else 0.5) + 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_refuses_weights_that_are_not_finite(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_BLOCK_ELEMENTS", 64)
    weight = gaussian(9, 24)
    weight[7, 5] = weight[8, 1] = value
    with pytest.raises(ValueError, match=rf"weight: expected finite values, got {value} at index \[7, 5\]"):
        quantize(weight, group_size=8)


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ({"bits": 1}, ValueError, r"bits: expected one of \(2, 4, 8\) for a group-quantized weight, got 1"),
        ({"bits": 4.0}, TypeError, "bits: expected an int, got float 4.0"),
        ({}, ValueError, "group_size: expected at most the 40 columns of the weight, got 128; None makes every row"),
        ({"group_size": 12}, ValueError, "group_size: expected a multiple of 8 up to 40 columns, .* got 12"),
        ({"group_size": 0}, ValueError, "group_size: expected a multiple of 8 up to 40 columns, .* got 0"),
        ({"group_size": -8}, ValueError, "group_size: expected a multiple of 8 .* got -8"),
        ({"group_size": "row"}, TypeError, "group_size: expected an int, got str 'row'"),
        ({"group_size": 8, "zero": "none"}, ValueError, r"zero: expected one of \('symmetric', 'integer', 'float'\)"),
        ({"group_size": 8, "zero": 3}, TypeError, "zero: expected one of .* got int 3"),
        ({"group_size": 8, "method": "gptq"}, ValueError, r"method: expected one of .*'hqq'\), got 'gptq'"),
        ({"group_size": 8, "scale_dtype": torch.float64}, TypeError, "scale_dtype: expected float16, bfloat16 or"),
        ({"weight": [[1.0]]}, TypeError, r"weight: expected float32, float16 or bfloat16 \[N, K\], got list"),
        ({"weight": torch.zeros(2, 8, dtype=torch.float64)}, TypeError, r"weight: .* got float64 \[2, 8\]"),
        ({"weight": torch.zeros(8)}, ValueError, r"weight: .* got float32 \[8\]"),
        ({"weight": torch.zeros(0, 8)}, ValueError, r"weight: .* N and K at least 1, got float32 \[0, 8\]"),
        ({"weight": torch.zeros(2, 8).to_sparse()}, TypeError, "weight: .* of strided layout, got torch.sparse_coo"),
    ],
)
def test_refusals(arguments: dict[str, Any], exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=message):
        quantize(**({"weight": gaussian(2, 40)} | arguments))


CODES = torch.arange(48, dtype=torch.uint8).reshape(2, 24) % 16
SCALES = torch.full((2, 3), 0.5)
OFFSETS = torch.full((2, 3), -1.0)
ZERO_POINTS = torch.full((2, 3), 7, dtype=torch.uint8)
WORDS = bittensor.pack_weights(CODES)


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ({"words": CODES}, TypeError, r"words: expected int64 \[2, 2\], got uint8 \[2, 24\]"),
        ({"words": WORDS[:, :1]}, ValueError, r"words: expected int64 \[2, 2\], got int64 \[2, 1\]"),
        ({"words": None}, TypeError, r"words: expected int64 \[2, 2\], got NoneType"),
        ({"scales": SCALES[:, :2]}, ValueError, r"scales: expected .* \[2, 3\], got float32 \[2, 2\]"),
        (
            {"scales": SCALES.double()},
            TypeError,
            r"scales: expected float16, bfloat16 or float32 \[2, 3\], got float64",
        ),
        ({"scales": SCALES / 0}, ValueError, r"scales: expected finite values, got inf at index \[0, 0\]"),
        ({"scales": SCALES.to("meta")}, ValueError, "scales: .* on cpu, where the words are, got one on meta"),
        ({"zeros": ZERO_POINTS.int()}, TypeError, r"zeros: expected uint8 \[2, 3\], got int32 \[2, 3\]"),
        ({"zeros": ZERO_POINTS + 9}, ValueError, r"zeros: expected codes? of 4 bits, 0..15, got 16 at index \[0, 0\]"),
        ({"offsets": OFFSETS.half()}, TypeError, r"offsets: expected float32 \[2, 3\], got float16 \[2, 3\]"),
        ({"offsets": OFFSETS * torch.nan}, ValueError, r"offsets: expected finite values, got nan at index \[0, 0\]"),
        ({"zeros": ZERO_POINTS, "offsets": OFFSETS}, ValueError, "zeros, offsets: expected at most one of them"),
        ({"shape": (2, 0)}, ValueError, r"shape: expected \(N, K\), two counts of at least 1, got \(2, 0\)"),
        ({"shape": 24}, TypeError, r"shape: expected \(N, K\), .* got int 24"),
        ({"bits": 3}, ValueError, r"bits: expected one of \(2, 4, 8\)"),
        ({"group_size": 32}, ValueError, "group_size: expected at most the 24 columns"),
        ({"group_size": 10}, ValueError, "group_size: expected a multiple of 8 up to 24 columns"),
    ],
)
def test_container_refusals(arguments: dict[str, Any], exception: type[Exception], message: str) -> None:
    fine: dict[str, Any] = {"words": WORDS, "scales": SCALES, "shape": (2, 24), "group_size": 8}
    QuantizedWeight(**fine)
    with pytest.raises(exception, match=message):
        QuantizedWeight(**(fine | arguments))


def test_container_keeps_its_tensors() -> None:
    quantized = QuantizedWeight(WORDS, SCALES, offsets=OFFSETS, shape=(2, 24), group_size=8)
    assert quantized.words is WORDS
    assert quantized.scales is SCALES
    assert quantized.offsets is OFFSETS
    assert torch.equal(quantized.codes(), CODES)
    assert quantized.zero == "float"


def test_from_codes() -> None:
    quantized = QuantizedWeight.from_codes(CODES, SCALES, ZERO_POINTS, group_size=8)
    expected = (CODES.float() - 7) * 0.5
    assert torch.equal(quantized.dequantize(), expected)
    with pytest.raises(ValueError, match=r"codes: expected uint8 \[N, K\], got uint8 \[24\]"):
        QuantizedWeight.from_codes(CODES[0], SCALES, group_size=8)
    with pytest.raises(ValueError, match="got 4 at index"):
        QuantizedWeight.from_codes(CODES, SCALES, group_size=8, bits=2)
    with pytest.raises(TypeError, match=r"dtype: expected float16, bfloat16 or float32, got torch\.int32"):
        quantized.dequantize(torch.int32)


def test_size_and_repr() -> None:
    quantized = quantize(gaussian(256, 1024), zero="integer", scale_dtype=torch.float16)
    groups = 256 * 1024 // 128
    assert quantized.nbytes == 256 * 1024 // 2 + groups * (2 + 1)
    assert quantized.bits_per_weight == 4 + 24 / 128
    assert repr(quantized) == (
        "QuantizedWeight(shape=[256, 1024], bits=4, group_size=128, zero='integer', scales=float16, 137 kB, "
        "4.188 bits per weight)"
    )
    assert "group_size=20, zero='symmetric', scales=float32, 12 bytes" in repr(quantize(gaussian(1, 20), 2, None))


def test_equal() -> None:
    quantized = quantize(gaussian(2, 24), group_size=8)
    words = quantized.words | torch.tensor([0, 0xF << 40])  # beyond column 24
    padded = QuantizedWeight(words, quantized.scales, shape=(2, 24), group_size=8)
    assert not torch.equal(padded.words, quantized.words)
    assert quantized.equal(padded)
    for twin in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert quantized.equal(twin)
    assert not quantized.equal(quantize(gaussian(2, 24), group_size=None))
    assert not quantized.equal(quantize(gaussian(2, 24), group_size=8, scale_dtype=torch.bfloat16))
    assert not quantized.equal(quantize(gaussian(2, 24), group_size=8, zero="integer"))
    assert not quantized.equal(quantize(gaussian(2, 24, seed=9), group_size=8))


def test_scales_carry_gradients() -> None:
    scales = SCALES.clone().requires_grad_()
    QuantizedWeight(WORDS, scales, shape=(2, 24), group_size=8).dequantize().sum().backward()  # type: ignore[no-untyped-call]
    assert scales.grad is not None
    assert torch.equal(scales.grad, (CODES.float() - 8).reshape(2, 3, 8).sum(-1))


@pytest.mark.parametrize("name", ["reference", "cpp"])
def test_backends_agree(name: str) -> None:
    weight = gaussian(4, 40)
    expected = quantize(weight, group_size=16)
    with bittensor.use_backend(name):
        assert torch.equal(quantize(weight, group_size=16).words, expected.words)
        assert torch.equal(expected.dequantize(), torch.from_numpy(dequantized_by_numpy(expected)))
