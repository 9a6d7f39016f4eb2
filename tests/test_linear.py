"""`linear` on every backend and variant: section 4 of docs/numerics.md to the bit, section 5 within its bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

import bittensor
from bittensor import Backend, QuantizedWeight, linear, quantize, use_backend

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BITS = (2, 4, 8)
ZEROS = ("symmetric", "integer", "float")
CPP = ("cpp", *(f"cpp:{name}" for name in bittensor.get_backend("cpp").capabilities.variants))
SHAPES = ((1, 1, 1, None), (3, 16, 32, 32), (2, 5, 13, None), (5, 17, 37, 16), (9, 40, 136, 64), (4, 33, 72, 8))
"""M, N, K, group size. The last group may be shorter; None is the whole row."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(
    rows: int, columns: int, group_size: int | None, bits: int = 4, zero: str = "symmetric", **options: Any
) -> QuantizedWeight:
    return quantize(normal(rows, columns, seed=1) + 0.3, bits, group_size, zero, **options)


def with_zero_signs(y: torch.Tensor) -> torch.Tensor:
    """The bits of `y`, with one pattern for every NaN."""
    y = torch.where(y.isnan(), torch.full_like(y, torch.nan), y)
    return y.view({4: torch.int32, 2: torch.int16}[y.dtype.itemsize])


def assert_same_bits(backend: str, y: torch.Tensor, expected: torch.Tensor) -> None:
    assert (y.dtype, y.shape, y.is_contiguous()) == (expected.dtype, expected.shape, True)
    different = (with_zero_signs(y) != with_zero_signs(expected)).nonzero()
    assert not len(different), (
        f"{backend}: {len(different)} of {y.numel()} results differ, first at {different[0].tolist()}: "
        f"{y[tuple(different[0])]} for {expected[tuple(different[0])]}"
    )


def check_int8(x: torch.Tensor, weight: QuantizedWeight, *arguments: Any) -> torch.Tensor:
    """Every kernel path gives the bits of the reference, which are returned."""
    with use_backend("reference"):
        expected = linear(x, weight, *arguments)
    for name in CPP:
        with use_backend(name):
            assert_same_bits(name, linear(x, weight, *arguments), expected)
    return expected


def int8_by_definition(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """Section 4 for finite x without a bias, in exact rational arithmetic with one rounding where it says so."""
    from fractions import Fraction

    def rounded(value: Fraction) -> np.float32:
        """Nearest float32, ties to even, for normal results."""
        if value == 0:
            return np.float32(0)
        exponent = 0
        while abs(value) * Fraction(2) ** -exponent >= 2**24:
            exponent += 1
        while abs(value) * Fraction(2) ** -exponent < 2**23:
            exponent -= 1
        return np.float32(round(value / Fraction(2) ** exponent) * 2.0**exponent)

    rows, columns = weight.shape
    codes = weight.codes().int().tolist()
    scales = weight.scales.float().numpy()
    y = np.zeros((len(x), rows), dtype=np.float32)

    def fma(one: np.float32, other: np.float32, total: np.float32) -> np.float32:
        return rounded(Fraction(float(one)) * Fraction(float(other)) + Fraction(float(total)))

    # groups that meet one group of activations
    together = max(64 // weight.group_size, 1) if weight.bits < 8 and weight.offsets is None else 1
    for m, n in product(range(len(x)), range(rows)):
        for first in range(0, weight.form.groups, together):
            values = x[m, first * weight.group_size : (first + together) * weight.group_size].numpy()
            amax = np.abs(values).max()
            a = np.rint(values * (np.float32(127) / amax)).astype(int)
            z = np.float32(0)
            for g in range(first, min(first + together, weight.form.groups)):
                own = a[(g - first) * weight.group_size :][: weight.group_size].tolist()
                zero = int(weight.zeros[n, g]) if weight.zeros is not None else 2 ** (weight.bits - 1)
                zero = 0 if weight.offsets is not None else zero
                row = codes[n][g * weight.group_size : min((g + 1) * weight.group_size, columns)]
                z = fma(np.float32(sum(p * (q - zero) for p, q in zip(own, row, strict=True))), scales[n, g], z)
                if weight.offsets is not None:
                    z = fma(np.float32(sum(own)), weight.offsets[n, g].float().numpy(), z)
            y[m, n] = fma(z, amax / np.float32(127), y[m, n])
    return torch.from_numpy(y)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("bits", "zero"), list(product(BITS, ZEROS)))
def test_int8_is_its_definition(backend: Backend, bits: int, zero: str) -> None:
    x, weight = normal(3, 37), weight_of(5, 37, 16, bits, zero)
    assert torch.equal(linear(x, weight), int8_by_definition(x, weight))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("bits", "zero"), list(product(BITS, ZEROS)))
def test_int8_has_the_bits_of_the_reference(shape: tuple[int, int, int, int | None], bits: int, zero: str) -> None:
    rows, outputs, columns, group_size = shape
    # Every dtype of scales with every dtype of x at 4 bits, each once at the others.
    for scale_dtype, dtype in product(DTYPES, DTYPES) if bits == 4 else zip(DTYPES, DTYPES[::-1], strict=True):
        weight = weight_of(outputs, columns, group_size, bits, zero, scale_dtype=scale_dtype)
        check_int8(normal(rows, columns).to(dtype), weight, normal(outputs, seed=2))


def test_int8_is_near_the_float_result(backend: Backend) -> None:
    x, weight = normal(8, 256), weight_of(32, 256, 32, 8)
    expected = x @ weight.dequantize().T
    error = (linear(x, weight) - expected).abs()
    # Each activation is off by half a step at most: amax / 254. Two groups of 32 columns meet one group of activations.
    steps = x.abs().reshape(8, 4, 64).amax(dim=2) / 254
    bound = (steps @ weight.dequantize().abs().reshape(32, 4, 64).sum(dim=2).T) * 1.001
    assert bool((error <= bound).all())


def float_bound(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """The bound of section 5, without the rounding of the output's dtype."""
    columns = weight.shape[1]
    of_column = torch.arange(columns) // weight.group_size
    scaled = weight.scales.double()[:, of_column] * weight.codes().double()
    if weight.offsets is not None:
        other = weight.offsets.double()[:, of_column]
    else:
        zeros = torch.full_like(weight.scales, 2.0 ** (weight.bits - 1)) if weight.zeros is None else weight.zeros
        other = (weight.scales.double() * zeros.double())[:, of_column]
    magnitude = x.double().abs() @ (scaled.abs() + other.abs()).T
    return (columns + weight.form.groups + 4) * 2.0**-24 * magnitude


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("bits", "zero"), list(product(BITS, ZEROS)))
def test_float_mode(shape: tuple[int, int, int, int | None], bits: int, zero: str) -> None:
    rows, outputs, columns, group_size = shape
    for scale_dtype, dtype in zip(DTYPES, DTYPES[::-1], strict=True):
        x = normal(rows, columns).to(dtype)
        weight = weight_of(outputs, columns, group_size, bits, zero, scale_dtype=scale_dtype)
        with use_backend("reference"):
            expected = linear(x, weight, None, "float")
        results = []
        for name in CPP:
            with use_backend(name):
                results.append(linear(x, weight, None, "float"))
                assert_same_bits(name, results[-1], results[0])
        rounding = torch.finfo(dtype).eps * expected.double().abs()
        excess = (results[0].double() - expected.double()).abs() - float_bound(x, weight) - rounding
        assert bool((excess <= 0).all()), f"beyond the bound by {float(excess.max())}"
        whole = x.double() @ weight.dequantize().double().T
        assert torch.allclose(expected.double(), whole, rtol=float(torch.finfo(dtype).eps), atol=1e-5 * columns)


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("bias_dtype", DTYPES)
def test_bias_and_relu(backend: Backend, mode: str, bias_dtype: torch.dtype) -> None:
    x, weight, bias = normal(4, 40), weight_of(70, 40, 16), normal(70, seed=3).to(bias_dtype)
    plain = linear(x, weight, None, mode)
    with_bias = linear(x, weight, bias, mode)
    if mode == "int8" or backend.name == "cpp":
        assert torch.equal(with_bias, plain + bias.float())
    else:
        assert torch.allclose(with_bias, plain + bias.float())
    assert torch.equal(linear(x, weight, bias, mode, "relu"), with_bias.relu())
    assert torch.equal(linear(x, weight, bias[::1].repeat(2)[:70], mode), with_bias)
    assert torch.equal(linear(x, weight, bias.repeat_interleave(2)[::2], mode), with_bias), "a strided bias"


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_is_rounded_once(backend: Backend, dtype: torch.dtype) -> None:
    x, weight, bias = normal(4, 40).to(dtype), weight_of(9, 40, 16), normal(9, seed=3)
    expected = linear(x.float(), weight, bias).to(dtype)
    assert_same_bits(backend.name, linear(x, weight, bias), expected)


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """`x` of three dimensions in other strides."""
    wide = torch.cat([x, x.flip(-1)], dim=-1)
    return {
        "rows apart": wide[..., : x.shape[-1]],
        "columns apart": torch.stack([x, x + 1], dim=-1)[..., 0],
        "transposed": x.transpose(-1, -2).contiguous().transpose(-1, -2),
        "leading swapped": x.transpose(0, 1).contiguous().transpose(0, 1),
        "every second": torch.stack([x, -x], dim=1)[:, 0],
        "offset by one": torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
        "negated": torch._neg_view(-x),
    }


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(backend: Backend, mode: str, dtype: torch.dtype) -> None:
    x, weight = normal(2, 3, 24).to(dtype), weight_of(5, 24, 8)
    expected = linear(x, weight, None, mode)
    for name, given in layouts(x).items():
        assert torch.equal(given, x), name
        before = given.clone()
        assert_same_bits(name, linear(given, weight, None, mode), expected)
        assert torch.equal(given, before), f"{name}: x was changed"
    assert_same_bits(
        "expanded",
        linear(x[:1, :1].expand(4, 5, 24), weight, None, mode),
        expected[:1, :1].expand(4, 5, 5).contiguous(),
    )
    assert_same_bits(
        "one column",
        linear(x[0, :, :1], weight_of(5, 1, None), None, mode),
        linear(x[0, :, :1].contiguous(), weight_of(5, 1, None), None, mode),
    )


@pytest.mark.parametrize("mode", ["int8", "float"])
def test_leading_dimensions(backend: Backend, mode: str) -> None:
    x, weight = normal(24, 24), weight_of(5, 24, 8)
    expected = linear(x, weight, None, mode)
    for leading in [(24,), (2, 12), (1, 2, 3, 4), (24, 1), (1,) * 9 + (24,)]:
        y = linear(x.reshape(*leading, 24), weight, None, mode)
        assert y.shape == (*leading, 5)
        assert torch.equal(y.reshape(24, 5), expected)
    assert torch.equal(linear(x[3], weight, None, mode), expected[3])
    for leading in [(0,), (2, 0), (0, 3)]:
        assert linear(x.new_empty(*leading, 24), weight, None, mode).shape == (*leading, 5)


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("zero", ZEROS)
def test_nan_and_infinity_stay_in_their_row(backend: Backend, mode: str, wrong: float, zero: str) -> None:
    weight, bias = weight_of(20, 40, 16, zero=zero), normal(20)
    x = normal(9, 40)
    expected = linear(x, weight, bias, mode, "relu")
    for row, column in [(0, 0), (3, 17), (8, 39)]:
        poisoned = x.clone()
        poisoned[row, column] = wrong
        y = linear(poisoned, weight, bias, mode, "relu")
        others = [m for m in range(9) if m != row]
        assert torch.equal(y[others], expected[others])
        if mode == "int8" or wrong != wrong:
            assert bool(y[row].isnan().all())


@pytest.mark.parametrize("zero", ZEROS)
def test_infinity_in_float_mode(zero: str) -> None:
    """The reference follows IEEE-754; the C++ backend, whose digits know no infinity, makes the row NaN."""
    x = normal(4, 40)
    x[0, 3], x[1, 20], x[2, 39], x[3, 0], x[3, 39] = torch.inf, -torch.inf, torch.inf, torch.inf, -torch.inf
    codes = torch.arange(20 * 40, dtype=torch.uint8).reshape(20, 40) % 16
    groups = (20, 3)
    weight = QuantizedWeight.from_codes(
        codes,
        normal(*groups).abs() + 0.1,
        torch.full(groups, 5, dtype=torch.uint8) if zero == "integer" else None,
        normal(*groups, seed=1) if zero == "float" else None,
        group_size=16,
    )
    with use_backend("reference"):
        expected = linear(x, weight, None, "float")
    assert bool(expected.isnan().any() and expected.isinf().any() and not expected.isfinite().any())
    for name in CPP:
        with use_backend(name):
            y = linear(x, weight, None, "float")
        assert y.isnan().all(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_activations(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    x = normal(12, 48)
    x[0] = 0.0
    x[1, :16], x[1, 16:] = 0.0, x[1, 16:]
    x[2] = -0.0
    x[3] = info.max * torch.sign(x[3])
    x[4] = info.tiny * x[4]
    x[5] = info.smallest_normal * torch.sign(x[5])
    x[6] = 2.0**-100
    x[7] = 2.0**-101
    x[8] = torch.nextafter(torch.tensor(2.0**-100), torch.tensor(0.0))
    x[9] = torch.arange(-24, 24) + 0.5  # halves after scaling by 127 / amax
    x[9, ::16] = 127.0
    x[10, ::5] *= 1e4
    x[11] = info.eps
    for zero, scale_dtype in product(ZEROS, DTYPES):
        weight = weight_of(19, 48, 16, zero=zero, scale_dtype=scale_dtype)
        y = check_int8(x.to(dtype), weight, normal(19))
        assert torch.equal(y[0], normal(19).to(dtype)), "a row of zeros gives the bias"


@pytest.mark.parametrize("scale", [0.0, -0.0, -1.5, 2.0**-149, 2.0**-126, 1e38])
def test_extreme_scales(scale: float) -> None:
    codes = torch.randint(0, 16, (17, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for dtype, x_scale in product(DTYPES, (1.0, 1e-20, 1e30)):
        weight = QuantizedWeight.from_codes(codes, torch.full((17, 2), scale), group_size=16)
        check_int8((normal(5, 32) * x_scale).to(dtype), weight)


def test_large_sums_are_rounded_to_float32() -> None:
    """t beyond 2^24 does not fit float32."""
    codes = torch.full((17, 4096), 255, dtype=torch.uint8)
    codes[:, ::7] = 3
    zeros = torch.zeros((17, 1), dtype=torch.uint8)
    weight = QuantizedWeight.from_codes(codes, torch.full((17, 1), 0.37), zeros, group_size=None, bits=8)
    y = check_int8(torch.full((3, 4096), 0.9) + normal(3, 4096) * 0.01, weight)
    assert float(y.min()) > 0.37 * 2**17


@pytest.mark.parametrize("mode", ["int8", "float"])
def test_threads_and_batch_do_not_change_bits(mode: str, threads: None) -> None:
    x, weight = normal(70, 512), weight_of(600, 512, 64, zero="integer")
    for name in CPP:
        with use_backend(name):
            torch.set_num_threads(1)
            expected = linear(x, weight, None, mode)
            torch.set_num_threads(4)
            assert_same_bits(name, linear(x, weight, None, mode), expected)
            for rows in (1, 2, 7, 33):
                assert_same_bits(f"{name}, {rows} rows", linear(x[-rows:], weight, None, mode), expected[-rows:])


@pytest.mark.parametrize("mode", ["int8", "float"])
def test_threads_with_panels_of_their_own_give_the_same_bits(mode: str, threads: None) -> None:
    """A weight larger than what all threads keep, and rows for whole panels of each."""
    x, weight = normal(641, 960), weight_of(603, 960, 64, bits=8, zero="float")
    with use_backend("cpp"):
        torch.set_num_threads(1)
        expected = linear(x, weight, None, mode)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert_same_bits(f"{count} threads", linear(x, weight, None, mode), expected)


def test_threads_share_a_weight(threads: None) -> None:
    torch.set_num_threads(1)
    x = normal(2, 40)
    weight = weight_of(16, 40, 8)
    expected, original, wrong = linear(x, weight_of(16, 40, 8)), weight_of(16, 40, 8), []

    def work(name: str) -> None:
        with use_backend(name):
            for _ in range(20):
                if not torch.equal(linear(x, weight), expected) or not weight.equal(original):
                    wrong.append(name)

    workers = [threading.Thread(target=work, args=(name,)) for name in ("cpp", "reference", "cpp", "reference")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_each_variant_runs_its_own_kernels() -> None:
    x, weight = normal(3, 40), weight_of(16, 40, 8)
    for name in CPP[1:]:
        isa = name.partition(":")[2]
        with use_backend(name) as backend:
            for mode, kind in (("int8", "quantize_row"), ("float", "split_row")):
                before = backend.kernel_calls()
                linear(x, weight, None, mode)
                after = backend.kernel_calls()
                ran = {kernel for kernel, count in after.items() if count != before[kernel]}
                assert all(kernel.endswith(f"_{isa}") for kernel in ran)
                assert {kind, "int8_linear"} <= {kernel.partition("_b")[0].removesuffix(f"_{isa}") for kernel in ran}


def test_gradients(backend: Backend) -> None:
    x = normal(2, 3, 40).requires_grad_()
    bias = normal(16).requires_grad_()
    weight = weight_of(16, 40, 8)
    for epilogue, mode in product((None, "relu"), ("int8", "float")):
        x.grad = bias.grad = None
        y = linear(x, weight, bias, mode, epilogue)
        dy = normal(2, 3, 16, seed=9)
        y.backward(dy)
        dy = dy if epilogue is None else dy * (y > 0)
        assert x.grad is not None
        assert bias.grad is not None
        torch.testing.assert_close(x.grad, dy @ weight.dequantize())
        torch.testing.assert_close(bias.grad, dy.sum(dim=(0, 1)))
    with torch.no_grad():
        assert not linear(x, weight, bias).requires_grad
    assert not linear(x.detach(), weight).requires_grad


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_multiply_add_rounds_once(sign: float) -> None:
    """The exact sum lies just above a tie of float32, and by less than float64 can tell."""
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 16:23] = 127.0, torch.tensor([127.0, 127.0, 127.0, 127.0, 127.0, 33.0, 0.0])
    codes = torch.full((3, 32), 8, dtype=torch.uint8)
    codes[:, 0] = 9  # t = 127
    codes[:, 16:22] = torch.tensor([15, 15, 15, 15, 12, 9], dtype=torch.uint8)  # t = 127 * 32 + 33 = 4097
    scales = torch.tensor([[2.0**-60, sign * (1 + 2.0**-12)]]).repeat(3, 1) * torch.tensor([[sign, 1.0]])
    y = check_int8(x, QuantizedWeight.from_codes(codes, scales, group_size=16))
    assert y[0].tolist() == [sign * (4096 + 2 + 2.0**-11)] * 3
