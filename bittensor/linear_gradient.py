"""The gradient of `bittensor.linear` (docs/numerics.md, section 6)."""

from __future__ import annotations

from typing import Any

import torch

from .backend import Backend
from .errors import UnsupportedOperationError
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
    if epilogue not in (None, "relu"):
        raise UnsupportedOperationError(
            f"linear has no gradient with epilogue={epilogue!r}; apply the function to the result instead, or compute "
            "under torch.no_grad()"
        )
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
        ctx.x_dtype = x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(*([y] if epilogue == "relu" else []))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = grads[0].to(torch.float32)
        for y in ctx.saved_tensors:
            grad = grad * (y > 0)
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ ctx.weight.dequantize()).to(ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(dim=0).to(ctx.bias_dtype)
        return grad_x, grad_bias, None, None, None, None
