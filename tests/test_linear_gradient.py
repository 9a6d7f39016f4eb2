"""The gradient of the linear with respect to its input: `linear_input_grad` of the protocol, and who uses it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

import bittensor
from bittensor import QuantizedWeight, get_backend, linear, use_backend

CPP = ["cpp", *(f"cpp:{variant}" for variant in get_backend("cpp").capabilities.variants)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(n: int, k: int, group_size: int | None, zero: str = "symmetric", bits: int = 4) -> QuantizedWeight:
    return bittensor.quantize(normal(n, k, seed=n + k), bits, group_size, zero=zero)


def by_definition(dy: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """One chain of multiply-adds: the product of two float32 is exact in float64; these sums are not ties there."""
    dx = torch.zeros(len(dy), values.shape[1])
    for n, row in enumerate(values.double()):
        dx = (dy[:, n : n + 1].double() * row + dx.double()).float()
    return dx


@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_instruction_set_has_the_same_bits(bits: int, zero: str) -> None:
    for (n, k, group_size), dtype in product(((17, 41, 16), (130, 72, 24), (5, 9, None)), DTYPES):
        weight, dy = weight_of(n, k, group_size, zero, bits), normal(9, n).to(dtype)
        expected = by_definition(dy.float(), weight.dequantize()).to(dtype)
        for name in CPP:
            backend = get_backend(name)
            prepared = backend.prepare(weight)
            for rows in (0, 1, 4, 9):
                assert torch.equal(backend.linear_input_grad(dy[:rows], prepared), expected[:rows]), name


def test_strides_and_leading_dimensions() -> None:
    weight, backend = weight_of(16, 40, 8), get_backend("cpp")
    prepared, dy = backend.prepare(weight), normal(2, 3, 32)[..., ::2]
    expected = backend.linear_input_grad(dy.reshape(6, 16), prepared).reshape(2, 3, 40)
    for given in (dy, dy.contiguous(), normal(2, 3, 32)[..., :16], dy.transpose(0, 1).contiguous().transpose(0, 1)):
        result = backend.linear_input_grad(given, prepared)
        assert result.is_contiguous()
        if torch.equal(given, dy):
            assert torch.equal(result, expected)
    assert backend.linear_input_grad(dy[0, 0], prepared).shape == (40,)


def test_wrong_arguments_are_refused() -> None:
    backend = get_backend("cpp")
    prepared = backend.prepare(weight_of(16, 40, 8))
    with pytest.raises(ValueError, match="dy: expected 16 columns, got 40"):
        backend.linear_input_grad(normal(2, 40), prepared)
    with pytest.raises(ValueError, match="dy: expected float32"):
        backend.linear_input_grad(normal(2, 16).double(), prepared)
    with pytest.raises(ValueError, match="layout"):
        backend.linear_input_grad(normal(2, 16), replace(prepared, layout="another"))


@pytest.mark.parametrize("epilogue", [None, "relu"])
def test_autograd_uses_the_kernel(epilogue: str | None) -> None:
    weight, x = weight_of(16, 40, 8), normal(3, 40).requires_grad_()
    with use_backend("cpp") as backend:
        before = backend.kernel_calls()
        linear(x, weight, epilogue=epilogue).sum().backward()
        ran = {name for name, count in backend.kernel_calls().items() if count != before[name]}
    assert any(name.startswith("codes_product") for name in ran)


def test_a_backend_without_the_operation_still_has_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend("reference")
    without = replace(backend.capabilities, operations=backend.capabilities.operations - {"linear_input_grad"})
    monkeypatch.setattr(backend, "capabilities", without)
    weight, x, dy = weight_of(16, 40, 8), normal(3, 40).requires_grad_(), normal(3, 16)
    with use_backend("reference"):
        linear(x, weight).backward(dy)
    torch.testing.assert_close(x.grad, dy @ weight.dequantize())


@pytest.mark.parametrize("modes", [{"int8"}, {"int8", "float"}])
@pytest.mark.parametrize("name", ["reference", "cpp"])
def test_the_gradient_has_a_gradient(monkeypatch: pytest.MonkeyPatch, name: str, modes: set[str]) -> None:
    backend = get_backend(name)
    monkeypatch.setattr(backend, "capabilities", replace(backend.capabilities, activation_modes=frozenset(modes)))
    weight, x, dy, v = (
        weight_of(16, 40, 8),
        normal(3, 40).requires_grad_(),
        normal(3, 16).requires_grad_(),
        normal(3, 40),
    )
    with use_backend(name):
        (dx,) = torch.autograd.grad(linear(x, weight), x, dy, create_graph=True)
        (result,) = torch.autograd.grad(dx, dy, v)
    torch.testing.assert_close(result, v @ weight.dequantize().T)
