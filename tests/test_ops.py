"""The public operations, on every backend, against sums over plain int64 codes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bittensor
from bittensor import Backend

SEED_EXAMPLE = """\
import torch, bittensor
x      = torch.randint(0, 16, (5, 16), dtype=torch.uint8)
weight = torch.randint(0, 16, (8, 16), dtype=torch.uint8)
bias   = torch.randint(0, 16, (8,),   dtype=torch.uint8)
packed = bittensor.pack_weights(weight)                  # int64 [8, 1]
out    = bittensor.packed_matmul(x, packed, bias)        # int64 [rows, 1], saturating int4
y      = bittensor.unpack_tensor(out, x.size(0), 8)      # uint8 [rows, 8]
layer  = bittensor.PackedLinear(weight, bias); layer(x)  # an nn.Module; packed weight and bias are buffers
"""

ALL_BITS = (1, 2, 4, 8)
COLUMNS = (1, 7, 15, 16, 17, 63, 64, 65)


def codes(shape: tuple[int, ...], bits: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=generator)


def accumulator(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, x_zero: int = 0, weight_zero: int = 0
) -> torch.Tensor:
    """Section 2 of docs/numerics.md on unpacked codes."""
    product = (x.long() - x_zero) @ (weight.long() - weight_zero).T
    return product if bias is None else product + bias


def saturated(acc: torch.Tensor, bits: int) -> torch.Tensor:
    return acc.clamp(0, 2**bits - 1).to(torch.uint8)


def test_seed_example(backend: Backend, root: Path) -> None:
    assert SEED_EXAMPLE in (root / "README.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(compile(SEED_EXAMPLE, "README.md", "exec"), names)
    x, weight, bias = names["x"], names["weight"], names["bias"]
    assert (names["packed"].dtype, names["packed"].shape) == (torch.int64, (8, 1))
    assert (names["out"].dtype, names["out"].shape) == (torch.int64, (5, 1))
    assert torch.equal(names["y"], saturated(accumulator(x, weight, bias), 4))
    assert torch.equal(names["layer"](x), names["out"])


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_pack_round_trip(backend: Backend, bits: int, columns: int) -> None:
    weight = codes((3, columns), bits)
    packed = bittensor.pack_weights(weight, bits)
    assert (packed.dtype, packed.shape) == (torch.int64, (3, -(-columns * bits // 64)))
    assert torch.equal(bittensor.unpack_weights(packed, columns, bits), weight)
    assert torch.equal(bittensor.unpack_tensor(packed, 3, columns, bits), weight)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_words_are_lowest_bits_first(backend: Backend, bits: int) -> None:
    row = codes((64 // bits + 1,), bits)
    first, second = bittensor.pack_weights(row, bits).tolist()
    expected = sum(code << bits * k for k, code in enumerate(row[:-1].tolist()))
    assert first % 2**64 == expected
    assert second == int(row[-1]), "the unused high bits of a row's last word are 0"


def test_unused_bits_are_ignored(backend: Backend) -> None:
    weight, x = codes((2, 5), 4), codes((3, 5), 4, seed=1)
    packed, packed_x = bittensor.pack_weights(weight), bittensor.pack_weights(x)
    padding = -1 << 4 * 5
    assert torch.equal(bittensor.unpack_weights(packed | padding, 5), weight)
    expected = accumulator(x, weight).int()
    result = bittensor.packed_matmul(packed_x | padding, packed | padding, in_features=5, out_dtype=torch.int32)
    assert torch.equal(result, expected)


def test_default_is_four_bits(backend: Backend) -> None:
    weight, x = codes((4, 16), 4), codes((2, 16), 4, seed=1)
    packed = bittensor.pack_weights(weight)
    assert torch.equal(packed, bittensor.pack_weights(weight, bits=4))
    assert torch.equal(bittensor.packed_matmul(x, packed), bittensor.packed_matmul(x, packed, bits=4))


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("rows", [1, 5])
def test_accumulator(backend: Backend, bits: int, columns: int, rows: int) -> None:
    x, weight = codes((rows, columns), bits), codes((9, columns), bits, seed=1)
    bias = torch.arange(-4, 5, dtype=torch.int32) * 1000
    packed = bittensor.pack_weights(weight, bits)
    result = bittensor.packed_matmul(x, packed, bias, bits=bits, out_dtype=torch.int32)
    assert result.dtype is torch.int32
    assert torch.equal(result, accumulator(x, weight, bias).int())


@pytest.mark.parametrize("bits", ALL_BITS)
def test_result_saturates(backend: Backend, bits: int) -> None:
    x, weight = codes((4, 40), bits), codes((6, 40), bits, seed=1)
    bias = torch.tensor([-100_000, -40, -10, 0, 1, 100_000], dtype=torch.int32)
    zeros = {"x_zero": 2**bits // 2, "weight_zero": 2**bits - 1}
    out = bittensor.packed_matmul(x, bittensor.pack_weights(weight, bits), bias, bits=bits, **zeros)
    expected = saturated(accumulator(x, weight, bias, **zeros), bits)
    assert torch.equal(bittensor.unpack_tensor(out, 4, 6, bits), expected)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("per_output", [False, True])
def test_scale_rounds_half_to_even(backend: Backend, bits: int, per_output: bool) -> None:
    x, weight = codes((4, 33), bits), codes((6, 33), bits, seed=1)
    scale = torch.tensor([0.5, 0.25, -0.5, 1.5, 0.125, 0.0]) if per_output else torch.tensor(0.5)
    out_zero = 1
    out = bittensor.packed_matmul(x, bittensor.pack_weights(weight, bits), bits=bits, scale=scale, out_zero=out_zero)
    rounded = torch.round(accumulator(x, weight).float() * scale) + out_zero
    assert torch.equal(bittensor.unpack_tensor(out, 4, 6, bits), saturated(rounded, bits))


def test_scale_may_be_a_float(backend: Backend) -> None:
    x, packed = codes((2, 16), 4), bittensor.pack_weights(codes((3, 16), 4, seed=1))
    expected = bittensor.packed_matmul(x, packed, scale=torch.tensor([0.01]))
    assert torch.equal(bittensor.packed_matmul(x, packed, scale=0.01), expected)


def test_chaining_without_unpacking(backend: Backend) -> None:
    x, first, second = codes((5, 20), 4), codes((18, 20), 4, seed=1), codes((7, 18), 4, seed=2)
    hidden = bittensor.packed_matmul(x, bittensor.pack_weights(first), scale=0.008)
    packed = bittensor.packed_matmul(hidden, bittensor.pack_weights(second), in_features=18)
    unpacked = bittensor.unpack_tensor(hidden, 5, 18)
    assert len(set(unpacked.flatten().tolist())) > 2, "the example must not be saturated throughout"
    assert torch.equal(packed, bittensor.packed_matmul(unpacked, bittensor.pack_weights(second)))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3)])
def test_batch_dimensions(backend: Backend, leading: tuple[int, ...]) -> None:
    x, weight = codes((*leading, 17), 4), codes((5, 17), 4, seed=1)
    packed = bittensor.pack_weights(weight)
    expected = accumulator(x, weight)
    assert torch.equal(bittensor.packed_matmul(x, packed, out_dtype=torch.int32), expected.int())
    out = bittensor.packed_matmul(x, packed)
    assert out.shape == (*leading, 1)
    rows = expected.shape[:-1].numel()
    assert torch.equal(bittensor.unpack_tensor(out, rows, 5), saturated(expected, 4).reshape(rows, 5))
    words = bittensor.pack_weights(x)
    assert words.shape == (*leading, 2)
    assert torch.equal(bittensor.unpack_weights(words, 17), x)
    assert torch.equal(bittensor.packed_matmul(words, packed, in_features=17), out)


def test_no_rows(backend: Backend) -> None:
    weight = bittensor.pack_weights(codes((5, 17), 4))
    x = torch.empty((0, 17), dtype=torch.uint8)
    assert bittensor.packed_matmul(x, weight).shape == (0, 1)
    assert bittensor.packed_matmul(x, weight, out_dtype=torch.int32).shape == (0, 5)
    assert bittensor.unpack_tensor(bittensor.pack_weights(x), 0, 17).shape == (0, 17)


def test_no_columns(backend: Backend) -> None:
    x, weight = torch.empty((3, 0), dtype=torch.uint8), torch.empty((4, 0), dtype=torch.uint8)
    packed = bittensor.pack_weights(weight)
    assert packed.shape == (4, 0)
    bias = torch.tensor([0, 3, 15, 200], dtype=torch.uint8)
    result = bittensor.packed_matmul(x, packed, bias, out_dtype=torch.int32)
    assert torch.equal(result, bias.int().expand(3, 4)), "a sum of no products is the bias"
    assert bittensor.unpack_weights(packed, 0).shape == (4, 0)


def test_no_outputs(backend: Backend) -> None:
    packed = bittensor.pack_weights(torch.empty((0, 17), dtype=torch.uint8))
    x = codes((3, 17), 4)
    assert bittensor.packed_matmul(x, packed).shape == (3, 0)
    assert bittensor.packed_matmul(x, packed, out_dtype=torch.int32).shape == (3, 0)


def test_strides_do_not_matter(backend: Backend) -> None:
    parent = codes((40, 80), 4)
    x = parent.T[5:75:7, 3:20]
    weight = parent[::5, 1:35:2]
    bias = codes((16,), 4)[::2]
    assert not x.is_contiguous()
    assert not weight.is_contiguous()
    packed = bittensor.pack_weights(weight)
    assert torch.equal(packed, bittensor.pack_weights(weight.contiguous()))
    expected = accumulator(x, weight, bias)
    assert torch.equal(bittensor.packed_matmul(x, packed, bias, out_dtype=torch.int32), expected.int())
    wide = torch.empty((8, 2 * packed.shape[1]), dtype=torch.int64)
    wide[:, ::2] = packed
    strided = wide[:, ::2]
    assert torch.equal(bittensor.packed_matmul(x, strided, bias, out_dtype=torch.int32), expected.int())
    assert torch.equal(bittensor.unpack_weights(strided, 17), weight)
    row = codes((1, 17), 4).expand(6, 17)
    assert torch.equal(bittensor.packed_matmul(row, packed), bittensor.packed_matmul(row.contiguous(), packed))


def test_inputs_are_not_modified(backend: Backend) -> None:
    tensors = {"x": codes((3, 17), 4), "weight": bittensor.pack_weights(codes((5, 17), 4)), "bias": codes((5,), 4)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    x, weight, bias = tensors.values()
    bittensor.packed_matmul(x, weight, bias, x_zero=3, weight_zero=5, scale=0.1, out_zero=2)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[name]), name


X = codes((2, 17), 4)
WEIGHT = torch.zeros((3, 2), dtype=torch.int64)
BIG_BIAS = torch.full((3,), -(2**31), dtype=torch.int32)

MATMUL_ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "x is a list": ({"x": [[1]]}, TypeError, r"x: expected uint8 codes .* got list"),
    "x is float": ({"x": X.float()}, TypeError, r"x: expected uint8 codes .* got float32 \[2, 17\]"),
    "x is a scalar": ({"x": X[0, 0]}, ValueError, "x: .* at least one dimension"),
    "x is sparse": ({"x": X.to_sparse()}, TypeError, "x: .* strided layout"),
    "x has another K": ({"x": X[:, :16]}, ValueError, r"weight: expected 1 words .* got shape \[3, 2\]"),
    "x does not fit in bits": ({"x": X.clone().fill_(16)}, ValueError, r"x: .* 0\.\.15, got 16 at index \[0, 0\]"),
    "x is packed, no in_features": ({"x": WEIGHT}, ValueError, "in_features: needed because x is packed"),
    "x is packed, negative in_features": ({"x": WEIGHT, "in_features": -1}, ValueError, "in_features: .* got -1"),
    "x is packed, wrong in_features": ({"x": WEIGHT, "in_features": 33}, ValueError, "x: expected 3 words"),
    "in_features disagrees": ({"in_features": 18}, ValueError, "x: expected 18 codes"),
    "in_features is a float": ({"in_features": 17.0}, TypeError, "in_features: expected an int, got float"),
    "weight is not packed": ({"weight": X}, TypeError, r"weight: expected int64 .* got uint8 \[2, 17\]"),
    "weight has one dimension": ({"weight": WEIGHT[0]}, ValueError, r"weight: .* got int64 \[2\]"),
    "bits is 3": ({"bits": 3}, ValueError, r"bits: expected one of \(1, 2, 4, 8\), got 3"),
    "bits is a float": ({"bits": 4.0}, TypeError, "bits: expected an int, got float 4.0"),
    "in_features is -1": ({"in_features": -1}, ValueError, "x: expected -1 codes a row"),
    "bias is float": ({"bias": torch.zeros(3)}, TypeError, "bias: expected uint8 or int32"),
    "bias is a list": ({"bias": [1, 2, 3]}, TypeError, "bias: .* got list"),
    "bias is too short": ({"bias": torch.zeros(2, dtype=torch.int32)}, ValueError, r"bias: .* \[3\], got int32 \[2\]"),
    "x_zero is a float tensor": ({"x_zero": torch.tensor(1.0)}, TypeError, "x_zero: expected an int, got Tensor"),
    "x_zero is no code": ({"x_zero": 16}, ValueError, r"x_zero: .* 0\.\.15, got 16"),
    "weight_zero is negative": ({"weight_zero": -1}, ValueError, "weight_zero: .* got -1"),
    "out_zero is a float": ({"out_zero": 1.0, "scale": 1.0}, TypeError, "out_zero: expected an int"),
    "out_zero without scale": ({"out_zero": 1}, ValueError, "out_zero: has no meaning without scale"),
    "scale is float64": ({"scale": torch.ones(3).double()}, TypeError, "scale: expected float32 .* got float64"),
    "scale is a string": ({"scale": "1"}, TypeError, "scale: .* got str"),
    "scale is too long": ({"scale": torch.ones(4)}, ValueError, r"scale: .* got float32 \[4\]"),
    "scale is NaN": ({"scale": float("nan")}, ValueError, "scale: expected finite"),
    "scale is infinite": ({"scale": torch.tensor([1, 2, float("inf")])}, ValueError, "scale: expected finite"),
    "scale of an accumulator": ({"scale": 1.0, "out_dtype": torch.int32}, ValueError, "scale: has no meaning with"),
    "out_dtype is float": ({"out_dtype": torch.float32}, TypeError, "out_dtype: .* got torch.float32"),
    "int32 could overflow": ({"bias": BIG_BIAS}, ValueError, r"accumulator: .* 2147487473, beyond int32"),
    "out_dtype is int64": ({"out_dtype": torch.int64}, TypeError, "out_dtype: .* got torch.int64"),
    "x is on another device": ({"x": X.to("meta")}, ValueError, "x: expected a tensor on cpu .* got one on meta"),
}


@pytest.mark.parametrize("case", MATMUL_ERRORS)
def test_packed_matmul_refuses(backend: Backend, case: str) -> None:
    arguments, error, message = MATMUL_ERRORS[case]
    with pytest.raises(error, match=message):
        bittensor.packed_matmul(**({"x": X, "weight": WEIGHT} | arguments))


INTEGERS: dict[str, Callable[[int], Any]] = {
    "numpy uint8": np.uint8,
    "numpy int64": np.int64,
    "torch uint8": partial(torch.tensor, dtype=torch.uint8),
    "torch int64": torch.tensor,
}


@pytest.mark.parametrize("integer", INTEGERS.values(), ids=INTEGERS)
def test_integers_of_other_libraries(backend: Backend, integer: Callable[[int], Any]) -> None:
    x, weight = codes((3, 17), 8), codes((5, 17), 8, seed=1)
    packed = bittensor.pack_weights(weight, bits=integer(8))
    assert torch.equal(packed, bittensor.pack_weights(weight, bits=8))
    assert torch.equal(bittensor.unpack_weights(packed, integer(17), integer(8)), weight)
    assert torch.equal(bittensor.unpack_tensor(packed, integer(5), integer(17), integer(8)), weight)
    zeros = {"x_zero": 200, "weight_zero": 3}
    result = bittensor.packed_matmul(
        bittensor.pack_weights(x, 8),
        packed,
        bits=integer(8),
        in_features=integer(17),
        out_dtype=torch.int32,
        **{name: integer(value) for name, value in zeros.items()},
    )
    assert torch.equal(result, accumulator(x, weight, **zeros).int())


def test_int32_bound_is_tight(backend: Backend) -> None:
    x, weight = codes((1, 17), 4), codes((3, 17), 4)
    packed = bittensor.pack_weights(weight)
    bias = torch.full((3,), 2**31 - 1 - 17 * 15 * 15, dtype=torch.int32)
    result = bittensor.packed_matmul(x, packed, bias, out_dtype=torch.int32)
    assert torch.equal(result, accumulator(x, weight, bias.long()).int())
    with pytest.raises(ValueError, match="beyond int32"):
        bittensor.packed_matmul(x, packed, bias + 1)


PACK_ERRORS: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "a list": ([[1]], 4, TypeError, "expected uint8 .* got list"),
    "int64": (torch.zeros((1, 2), dtype=torch.int64), 4, TypeError, r"expected uint8 .* got int64 \[1, 2\]"),
    "a scalar": (torch.tensor(1, dtype=torch.uint8), 4, ValueError, "at least one dimension"),
    "a code too large": (torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8), 2, ValueError, r"got 4 at index \[1, 1\]"),
    "bits of 16": (torch.zeros(2, dtype=torch.uint8), 16, ValueError, "bits: expected one of"),
    "bits as str": (torch.zeros(2, dtype=torch.uint8), "4", TypeError, "bits: expected an int"),
    "another device": (torch.zeros(2, dtype=torch.uint8, device="meta"), 4, ValueError, "got one on meta"),
}


@pytest.mark.parametrize("case", PACK_ERRORS)
def test_pack_weights_refuses(backend: Backend, case: str) -> None:
    weight, bits, error, message = PACK_ERRORS[case]
    with pytest.raises(error, match=message):
        bittensor.pack_weights(weight, bits)


UNPACK_ERRORS: dict[str, tuple[torch.Tensor, int, Any, type[Exception], str]] = {
    "uint8": (torch.zeros((3, 2), dtype=torch.uint8), 3, 17, TypeError, r"expected int64 .* got uint8 \[3, 2\]"),
    "too few words": (WEIGHT, 3, 33, ValueError, r"expected 3 words .* got shape \[3, 2\]"),
    "too many words": (WEIGHT, 3, 16, ValueError, "expected 1 words"),
    "negative columns": (WEIGHT, 3, -1, ValueError, "at least 0, got -1"),
    "columns as float": (WEIGHT, 3, 17.0, TypeError, "expected an int, got float"),
    "too many rows": (WEIGHT, 4, 17, ValueError, r"expected 4 rows, as rows=4 says, got 3"),
    "a scalar": (torch.tensor(1), 1, 1, ValueError, "at least one dimension"),
}


@pytest.mark.parametrize("case", UNPACK_ERRORS)
def test_unpack_tensor_refuses(backend: Backend, case: str) -> None:
    packed, rows, columns, error, message = UNPACK_ERRORS[case]
    with pytest.raises(error, match=message):
        bittensor.unpack_tensor(packed, rows, columns)


def test_a_scale_is_on_the_cpu_whatever_the_default(backend: Backend) -> None:
    codes = torch.ones(2, 16, dtype=torch.uint8)
    packed = bittensor.pack_weights(codes)
    with torch.device("meta"):
        assert not bittensor.packed_matmul(codes, packed, scale=0.5).is_meta
