"""The linear under the transforms of torch.func: grad, vjp, jacrev and vmap, nested in any order.

torch lets no operator with a registered gradient through them, but an `torch.autograd.Function` whose context is set up
apart from its forward, and which says what a batch of calls is. Here that is one call with one more leading dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from .backend import Backend
from .linear_gradient import linear_gradients, save_for_gradients
from .operators import Operators
from .prepared_weight import PreparedWeight
from .tracing import never_compiled

transforms_are_active = torch._C._are_functorch_transforms_active
"""Whether the caller is under a transform."""


@dataclass(frozen=True)
class _Call:
    """What a linear computes on, but for its tensors. No transform sees the weight: it is constant."""

    operators: Operators
    weight: PreparedWeight
    activation_mode: str
    epilogue: str | None


def transformed_linear(
    backend: Backend,
    x: torch.Tensor,
    weight: PreparedWeight,
    bias: torch.Tensor | None,
    activation_mode: str,
    epilogue: str | None,
) -> torch.Tensor:
    """`Backend.linear` for tensors under a transform of torch.func.

    torch.compile may not trace this: it takes the forward of a function as if it had no other part.
    """
    call = _Call(Operators(backend), weight, activation_mode, epilogue)
    result: torch.Tensor = never_compiled(_linear, x, bias, call)
    return result


def _linear(x: torch.Tensor, bias: torch.Tensor | None, call: _Call) -> torch.Tensor:
    result: torch.Tensor = _Linear.apply(x, bias, call)  # type: ignore[no-untyped-call]
    return result


def _input_grad(dy: torch.Tensor, call: _Call) -> torch.Tensor:
    result: torch.Tensor = _InputGrad.apply(dy, call)  # type: ignore[no-untyped-call]
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, bias: torch.Tensor | None, call: _Call) -> torch.Tensor:
        return call.operators.linear(x, call.weight, bias, call.activation_mode, call.epilogue)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor | None, _Call], output: torch.Tensor) -> None:
        x, bias, ctx.call = inputs
        save_for_gradients(ctx, x, (), bias, ctx.call.epilogue, output)

    @staticmethod
    def backward(ctx: Any, *dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        call: _Call = ctx.call

        def linear(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            return _linear(x, bias, replace(call, epilogue=None))

        def input_grad(grad: torch.Tensor) -> torch.Tensor:
            return _input_grad(grad, call)

        x_needs, bias_needs, _ = ctx.needs_input_grad
        return *linear_gradients(ctx, dy[0], x_needs, bias_needs, linear, input_grad), None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, int | None, None],
        x: torch.Tensor,
        bias: torch.Tensor | None,
        call: _Call,
    ) -> tuple[torch.Tensor, int]:
        x_dim, bias_dim, _ = in_dims
        if bias is None or bias_dim is None:
            return _linear(x.movedim(x_dim or 0, 0), bias, call), 0
        # The bias is added before the epilogue, within the operator: one call for each.
        each_bias = bias.unbind(bias_dim)
        each_x = [x] * len(each_bias) if x_dim is None else x.unbind(x_dim)
        return torch.stack([_linear(*both, call) for both in zip(each_x, each_bias, strict=True)]), 0


class _InputGrad(torch.autograd.Function):
    @staticmethod
    def forward(dy: torch.Tensor, call: _Call) -> torch.Tensor:
        return call.operators.linear_input_grad(dy, call.weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, _Call], output: torch.Tensor) -> None:
        _, ctx.call = inputs

    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        # The product with the weight is the transpose of the product with its transpose.
        call: _Call = ctx.call
        if "float" in call.operators.capabilities.activation_modes:
            return _linear(grad[0], None, replace(call, activation_mode="float", epilogue=None)), None
        units = torch.eye(
            call.weight.form.shape[0], dtype=torch.float32, device=grad[0].device
        )  # whose gradients are the weight
        return (grad[0].to(torch.float32) @ _input_grad(units, call).T).to(grad[0].dtype), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], dy: torch.Tensor, call: _Call) -> tuple[torch.Tensor, int]:
        return _input_grad(dy.movedim(in_dims[0], 0), call), 0
