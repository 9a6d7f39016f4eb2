"""The gradient of the linear (docs/numerics.md, section 6), shared by every operator that computes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

Product = Callable[..., torch.Tensor]
"""A function of a tensor and of the tensors of the weight, one by one."""


def save_for_gradients(
    ctx: Any,
    x: torch.Tensor,
    weight: Sequence[torch.Tensor],
    bias: torch.Tensor | None,
    epilogue: str | None,
    y: torch.Tensor,
) -> None:
    """Keep in `ctx` what `linear_gradients` needs of a call with the result `y`."""
    ctx.epilogue = epilogue
    ctx.x_dtype = x.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.weight_tensors = len(weight)
    if epilogue is None:
        ctx.save_for_backward(*weight)
    elif epilogue == "relu":
        ctx.save_for_backward(*weight, y)
    else:  # what exists anyway: the result before the epilogue is computed again
        ctx.save_for_backward(*weight, x, bias)


def linear_gradients(
    ctx: Any, dy: torch.Tensor, x_needs: bool, bias_needs: bool, linear: Product, input_grad: Product
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of x and of the bias, straight through int8; None for the one that is not needed.

    `linear` takes x, the weight and the bias, and ends without an epilogue. `input_grad` is ``dy @ dequantize(W)``.
    """
    saved = ctx.saved_tensors
    weight, others = saved[: ctx.weight_tensors], saved[ctx.weight_tensors :]
    grad = dy.to(torch.float32)
    if ctx.epilogue == "relu":
        (y,) = others
        grad = grad * (y > 0)
    elif ctx.epilogue is not None:
        x, bias = others
        before = linear(x.to(torch.float32), *weight, bias)
        grad = grad * (_gelu_derivative if ctx.epilogue == "gelu" else _silu_derivative)(before)
    grad_x = grad_bias = None
    if x_needs:
        grad_x = input_grad(grad, *weight).to(ctx.x_dtype)
    if bias_needs:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(dim=0).to(ctx.bias_dtype)
    return grad_x, grad_bias


def _gelu_derivative(v: torch.Tensor) -> torch.Tensor:
    """Phi(v) + v phi(v), with the distribution function and the density of the normal distribution."""
    distribution: torch.Tensor = torch.special.erfc(v * -math.sqrt(0.5)) / 2
    return distribution + v * torch.exp(v * v / -2) / math.sqrt(2 * math.pi)


def _silu_derivative(v: torch.Tensor) -> torch.Tensor:
    """sigma(v) (1 + v sigma(-v)), with the logistic function."""
    return torch.sigmoid(v) * (1 + v * torch.sigmoid(-v))
