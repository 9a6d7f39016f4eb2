"""Epilogues of `linear` on every backend: the functions that they are named after, their place, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from bittensor import Backend, QuantizedWeight, linear, quantize

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_ERROR = {"gelu": 4.3, "silu": 2.0}
"""Of section 7 in docs/numerics.md, in units of 2^-24 |v|."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(rows: int, columns: int, group_size: int | None) -> QuantizedWeight:
    return quantize(normal(rows, columns, seed=1) + 0.3, 4, group_size)


def of_values(v: torch.Tensor, epilogue: str, mode: str) -> torch.Tensor:
    """The epilogue of `v`, which is the bias; x is 0."""
    return linear(torch.zeros(1, 8), quantize(torch.ones(len(v), 8), group_size=None), v, mode, epilogue)[0]


def exact(epilogue: str, v: torch.Tensor) -> torch.Tensor:
    """The function in float64."""
    v = v.to(torch.float64)
    return v * torch.special.erfc(-v * math.sqrt(0.5)) / 2 if epilogue == "gelu" else v * torch.sigmoid(v)


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("epilogue", ["gelu", "silu"])
def test_values_are_near_the_function(backend: Backend, epilogue: str, mode: str) -> None:
    exponents = torch.arange(-148, 127).repeat_interleave(128)
    v = torch.ldexp(normal(len(exponents)), exponents).clamp(-3e38, 3e38)
    v = torch.cat([v, torch.linspace(-20, 20, 40001)])
    result, expected = of_values(v, epilogue, mode), exact(epilogue, v)
    excess = (result.double() - expected).abs() - LARGEST_ERROR[epilogue] * 2.0**-24 * v.double().abs() - 2.0**-149
    assert bool((excess <= 0).all()), f"{epilogue}({float(v[excess.argmax()])!r}) is off by {float(excess.max())}"
    assert torch.equal(result[v > 20], v[v > 20])


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("epilogue", ["gelu", "silu"])
def test_special_values(backend: Backend, epilogue: str, mode: str) -> None:
    v = torch.tensor([math.nan, math.inf, -math.inf, -3e38, -100.0, 0.0])
    result = of_values(v, epilogue, mode)
    assert result.isnan().tolist() == [True, False, True, False, False, False]
    assert result[1] == math.inf
    assert result[3:].tolist() == [0.0] * 3
    assert result.signbit()[3:].tolist() == [True, True, False]


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("epilogue", ["relu", "gelu", "silu"])
def test_the_epilogue_follows_the_bias_and_precedes_the_rounding(backend: Backend, epilogue: str, mode: str) -> None:
    weight, bias = weight_of(33, 40, 16), normal(33, seed=3)
    for dtype in DTYPES:
        x = normal(7, 40).to(dtype)
        v = linear(x.float(), weight, bias, mode)
        expected = torch.stack([of_values(row, epilogue, mode) for row in v])
        assert torch.equal(linear(x, weight, bias, mode, epilogue), expected.to(dtype))


FUNCTIONS = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("epilogue", ["relu", "gelu", "silu"])
def test_gradients_are_those_of_autograd(backend: Backend, epilogue: str, mode: str) -> None:
    weight = weight_of(16, 40, 8)
    for dtype in DTYPES:
        x, bias = normal(2, 3, 40).to(dtype).requires_grad_(), normal(16, seed=3).to(dtype).requires_grad_()
        dy = normal(2, 3, 16, seed=9).to(dtype)
        linear(x, weight, bias, mode, epilogue).backward(dy)
        # Autograd from the same values before the epilogue, through the function and a product of floats.
        v = linear(x.detach().float(), weight, bias.detach(), mode).requires_grad_()
        (dv,) = torch.autograd.grad(FUNCTIONS[epilogue](v), v, dy.float())
        torch.testing.assert_close(x.grad, (dv @ weight.dequantize()).to(dtype))
        torch.testing.assert_close(bias.grad, dv.sum(dim=(0, 1)).to(dtype))


@pytest.mark.parametrize("epilogue", ["gelu", "silu"])
def test_gradients_of_one_operand(backend: Backend, epilogue: str) -> None:
    weight, x, bias = weight_of(16, 40, 8), normal(5, 40), normal(16, seed=3)
    whole = [tensor.clone().requires_grad_() for tensor in (x, bias)]
    linear(whole[0], weight, whole[1], "int8", epilogue).sum().backward()
    for i in range(2):
        operands = [x.clone(), bias.clone()]
        operands[i].requires_grad_()
        linear(operands[0], weight, operands[1], "int8", epilogue).sum().backward()
        assert torch.equal(operands[i].grad, whole[i].grad)
        assert operands[1 - i].grad is None
    alone = x.clone().requires_grad_()
    linear(alone, weight, None, "int8", epilogue).sum().backward()
    assert not torch.equal(alone.grad, whole[0].grad)


@pytest.mark.parametrize("epilogue", ["relu", "gelu", "silu"])
def test_gradients_of_gradients(backend: Backend, epilogue: str) -> None:
    weight = weight_of(6, 8, 8)
    values = weight.dequantize()

    def second(compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        x = normal(3, 8).requires_grad_()
        (first,) = torch.autograd.grad((compute(x) ** 2).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), x)[0]

    expected = second(lambda x: FUNCTIONS[epilogue](x @ values.T))
    result = second(lambda x: linear(x, weight, None, "float", epilogue))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_a_change_of_x_before_the_gradient_is_noticed(backend: Backend) -> None:
    x = normal(3, 8).requires_grad_()
    given = x * 1
    y = linear(given, weight_of(6, 8, 8), epilogue="gelu")
    given += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_no_result_before_the_epilogue_is_kept(backend: Backend) -> None:
    """The graph of a linear with GELU holds its inputs, the weight among them, and nothing else."""
    x, bias, saved, weight = normal(3, 8).requires_grad_(), normal(6), [], weight_of(6, 8, 8)
    prepared = weight.prepared_for(backend).tensors
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        linear(x, weight, bias, epilogue="gelu")
    assert [tensor.data_ptr() for tensor in saved] == [tensor.data_ptr() for tensor in (*prepared, x, bias)]
