"""What `linear` refuses, in which words, and what a backend may leave undeclared."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bittensor
from bittensor import Backend, Capabilities, QuantizedWeight, UnsupportedOperationError, linear, quantize, use_backend


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(
    rows: int, columns: int, group_size: int | None, bits: int = 4, zero: str = "symmetric", **options: Any
) -> QuantizedWeight:
    return quantize(normal(rows, columns, seed=1), bits, group_size, zero, **options)


X, WEIGHT = normal(2, 40), weight_of(16, 40, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, X), TypeError, "weight: expected a QuantizedWeight, got Tensor"),
        ((X, None), TypeError, "weight: expected a QuantizedWeight, got NoneType"),
        ((None, WEIGHT), TypeError, r"x: expected float16, bfloat16 or float32 \[\.\.\., 40\], got NoneType"),
        ((X.double(), WEIGHT), TypeError, r"x: expected float16, .* got float64 \[2, 40\]"),
        ((X.int(), WEIGHT), TypeError, r"got int32 \[2, 40\]"),
        ((X[:, :39], WEIGHT), ValueError, r"x: expected 40 values a row, .* got float32 \[2, 39\]"),
        ((X[0, 0], WEIGHT), ValueError, r"x: expected 40 values a row, .* got float32 \[\]"),
        ((X.to("meta"), WEIGHT), ValueError, r"x: expected a tensor on cpu \(backend '\w+'\), got one on meta"),
        ((X.to_sparse(), WEIGHT), TypeError, "x: expected a tensor of strided layout"),
        ((X, WEIGHT.to("meta")), ValueError, r"weight: expected one on cpu \(backend '\w+'\), got one on meta"),
        ((X, WEIGHT, X), ValueError, r"bias: expected \[16\], one value for each output, got float32 \[2, 40\]"),
        ((X, WEIGHT, torch.zeros(15)), ValueError, r"bias: expected \[16\], .* got float32 \[15\]"),
        ((X, WEIGHT, torch.zeros(16).int()), TypeError, "bias: expected float16, bfloat16 or float32"),
        ((X, WEIGHT, [0.0] * 16), TypeError, r"bias: expected .*, got list"),
        ((X, WEIGHT, torch.zeros(16).to("meta")), ValueError, "bias: expected a tensor on cpu"),
        ((X, WEIGHT, None, "int4"), ValueError, "activation_mode: expected one of .*, got 'int4'"),
        ((X, WEIGHT, None, 8), TypeError, "activation_mode: expected one of .*, got int 8"),
        ((X, WEIGHT, None, []), TypeError, "activation_mode: expected one of .*, got list"),
        ((X, WEIGHT, None, None), TypeError, "activation_mode: expected one of .*, got NoneType"),
        ((X, WEIGHT, None, "int8", "tanh"), ValueError, "epilogue: expected one of .*, got 'tanh'"),
        ((X, WEIGHT, None, "int8", 1), TypeError, "epilogue: expected one of .*, got int 1"),
    ],
)
def test_refusals(backend: Backend, arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear(*arguments)


class Narrow(Backend):
    name = "narrow"
    protocol_version = bittensor.PROTOCOL_VERSION
    capabilities = Capabilities(
        operations=frozenset({"prepare", "restore", "linear"}),
        linear_bits=frozenset({4}),
        zero_kinds=frozenset({"symmetric"}),
        scale_dtypes=frozenset({torch.float32}),
        activation_modes=frozenset({"float"}),
        epilogues=frozenset({None}),
    )


class Integers(Backend):
    name = "integers"
    protocol_version = bittensor.PROTOCOL_VERSION
    capabilities = Capabilities()


@pytest.mark.parametrize(
    ("weight", "arguments", "message"),
    [
        (
            weight_of(2, 8, 8, bits=2),
            (None, "float"),
            r"'narrow' does not declare bits=2 for linear; it declares \[4\]",
        ),
        (weight_of(2, 8, 8, zero="float"), (None, "float"), "zero='float'"),
        (weight_of(2, 8, 8, scale_dtype=torch.float16), (None, "float"), "scale dtype=torch.float16"),
        (weight_of(2, 8, 8), (None, "int8"), "activation_mode='int8'"),
        (weight_of(2, 8, 8), (None, "float", "relu"), "epilogue='relu'"),
        (weight_of(2, 8, 8), (None, "float", "gelu"), "epilogue='gelu'"),
    ],
)
def test_undeclared_capabilities(
    monkeypatch: pytest.MonkeyPatch, weight: QuantizedWeight, arguments: tuple[Any, ...], message: str
) -> None:
    monkeypatch.setitem(bittensor.registry._loaded, "narrow", Narrow())
    with use_backend("narrow"), pytest.raises(UnsupportedOperationError, match=message):
        linear(normal(1, 8), weight, *arguments)


def test_a_backend_without_linear_stays_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bittensor.registry._loaded, "integers", Integers())
    with use_backend("integers") as backend:
        with pytest.raises(UnsupportedOperationError, match="'integers' does not declare the operation 'linear'"):
            linear(X, WEIGHT)
        for call in (
            lambda: backend.prepare(WEIGHT),
            lambda: backend.linear(X, WEIGHT.canonical(), None, "int8", None),
        ):
            with pytest.raises(UnsupportedOperationError, match="'integers' does not declare the operation"):
                call()


def test_freed_memory_is_refused() -> None:
    """As memory it is null, which for some operands would mean that there is none."""
    x, bias = torch.ones(2, WEIGHT.shape[1]), torch.ones(WEIGHT.shape[0])
    with use_backend("cpp"):
        linear(x, WEIGHT, bias)
        for freed in (bias, x):
            freed.untyped_storage().resize_(0)
            with pytest.raises(ValueError, match="the storage of the tensor was freed"):
                linear(x, WEIGHT, bias)


def test_memory_that_was_made_smaller_is_refused() -> None:
    """torch's own operators read behind it."""
    columns = WEIGHT.shape[1]
    whole, view, transposed = torch.ones(2, columns), torch.ones(5, columns)[2:4, :], torch.ones(columns, 2).t()
    words = bittensor.pack_weights(torch.ones(2, columns, dtype=torch.uint8))
    with use_backend("cpp"):
        for x in (whole, view, transposed):
            linear(x, WEIGHT)
            bytes_ = x.untyped_storage().nbytes()
            x.untyped_storage().resize_(bytes_ - 4 * columns * (x is view))  # the row behind the view may go
            linear(x, WEIGHT)
            reach = 4 * (x.storage_offset() + 2 * columns)
            x.untyped_storage().resize_(reach - 1)
            message = f"x: the storage of the tensor was made smaller: {reach - 1} bytes are left of the {reach} up to"
            with pytest.raises(ValueError, match=message):
                linear(x, WEIGHT)
        words.untyped_storage().resize_(8)
        with pytest.raises(ValueError, match="weight: the storage of the tensor was made smaller: 8 bytes are left"):
            bittensor.packed_matmul(torch.ones(2, columns, dtype=torch.uint8), words)


def test_freed_indices_and_scales_are_refused() -> None:
    operators, words = torch.ops.bittensor_cpp, bittensor.pack_weights(torch.ones(2, 16, dtype=torch.uint8))
    prepared = bittensor.get_backend("cpp").prepare(WEIGHT).tensors[0]
    for dtype in (torch.int64, torch.int32):
        indices = torch.zeros(3, dtype=dtype)
        indices.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="indices: the storage of the tensor was freed"):
            operators.embedding(indices, prepared, WEIGHT.shape[1])
    scale = torch.ones(2)
    scale.untyped_storage().resize_(0)
    with use_backend("cpp"), pytest.raises(ValueError, match="scale: the storage of the tensor was freed"):
        operators.packed_matmul(torch.ones(2, 16, dtype=torch.uint8), words, scale=scale)
