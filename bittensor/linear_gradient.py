"""The gradient of `bittensor.linear` (docs/numerics.md, section 6)."""

from __future__ import annotations

import math
from typing import Any

import torch

from .backend import Backend
from .quantized_weight import QuantizedWeight


def differentiable_linear(
    backend: Backend,
    x: torch.Tensor,
    weight: QuantizedWeight,
    bias: torch.Tensor | None,
    activation_mode: str,
    epilogue: str | None,
) -> torch.Tensor:
    """`Backend.linear` with gradients of `x` and `bias`: ``dx = dy @ dequantize(W)``, straight through int8."""
    result: torch.Tensor = _Linear.apply(x, bias, weight, backend, activation_mode, epilogue)  # type: ignore[no-untyped-call]
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        weight: QuantizedWeight,
        backend: Backend,
        activation_mode: str,
        epilogue: str | None,
    ) -> torch.Tensor:
        y = backend.linear(x, weight.prepared_for(backend), bias, activation_mode, epilogue)
        ctx.weight = weight
        ctx.options = (backend, activation_mode)
        ctx.epilogue = epilogue
        ctx.x_dtype = x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        if epilogue == "relu":
            ctx.save_for_backward(y)
        elif epilogue is not None:  # what exists anyway: the result before the epilogue is computed again
            ctx.save_for_backward(x, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = grads[0].to(torch.float32)
        if ctx.epilogue == "relu":
            (y,) = ctx.saved_tensors
            grad = grad * (y > 0)
        elif ctx.epilogue is not None:
            x, bias = ctx.saved_tensors
            before = _Linear.apply(x.to(torch.float32), bias, ctx.weight, *ctx.options, None)  # type: ignore[no-untyped-call]
            grad = grad * (_gelu_derivative if ctx.epilogue == "gelu" else _silu_derivative)(before)
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _input_grad(ctx.options[0], grad, ctx.weight).to(ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(dim=0).to(ctx.bias_dtype)
        return grad_x, grad_bias, None, None, None, None


def _gelu_derivative(v: torch.Tensor) -> torch.Tensor:
    """Phi(v) + v phi(v), with the distribution function and the density of the normal distribution."""
    distribution: torch.Tensor = torch.special.erfc(v * -math.sqrt(0.5)) / 2
    return distribution + v * torch.exp(v * v / -2) / math.sqrt(2 * math.pi)


def _silu_derivative(v: torch.Tensor) -> torch.Tensor:
    """sigma(v) (1 + v sigma(-v)), with the logistic function."""
    return torch.sigmoid(v) * (1 + v * torch.sigmoid(-v))


def _input_grad(backend: Backend, grad: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """``grad @ dequantize(weight)`` by the backend, or by torch where the backend does not declare the operation."""
    if "linear_input_grad" in backend.capabilities.operations:
        result: torch.Tensor = _InputGrad.apply(grad, weight, backend)  # type: ignore[no-untyped-call]
        return result
    return grad @ weight.dequantize()


class _InputGrad(torch.autograd.Function):
    """`Backend.linear_input_grad`, itself differentiable: it is linear in dy."""

    @staticmethod
    def forward(ctx: Any, dy: torch.Tensor, weight: QuantizedWeight, backend: Backend) -> torch.Tensor:
        ctx.weight = weight
        return backend.linear_input_grad(dy, weight.prepared_for(backend))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grads[0] @ ctx.weight.dequantize().T, None, None
