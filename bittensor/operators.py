"""Operators of torch's dispatcher, namespace ``bittensor``, on any backend: the way to backends without their own.

A backend is named by its name in the registry, a weight is its tensors and its form, so that a compiled or exported
program holds plain values only. Each operator has a fake, and `linear` has a gradient: torch.compile and torch.export
take a call as one opaque step, whatever the backend does in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .backend import PROTOCOL_VERSION, Backend
from .checks import check_pack, check_packed_matmul, check_unpack
from .codes import words_per_row
from .linear_checks import check_product, check_rows
from .linear_gradient import linear_gradients, save_for_gradients
from .prepared_weight import PreparedWeight, WeightForm
from .registry import get_backend, name_of

_FORM = "str layout, SymInt[] shape, int bits, int group_size, str zero, ScalarType scale_dtype"
"""The arguments that describe a prepared weight beside its tensors."""

_library = torch.library.Library("bittensor", "DEF")  # type: ignore[no-untyped-call]
for _schema in (
    "pack(Tensor codes, int bits, str backend) -> Tensor",
    "unpack(Tensor words, SymInt columns, int bits, str backend) -> Tensor",
    "packed_matmul(Tensor x, Tensor weight, Tensor? bias, int bits, SymInt? in_features, int x_zero, int weight_zero, "
    "Tensor? scale, int out_zero, ScalarType? out_dtype, str backend) -> Tensor",
    f"linear(Tensor x, Tensor[] weight, {_FORM}, Tensor? bias, str activation_mode, str? epilogue, str backend) "
    "-> Tensor",
    f"linear_input_grad(Tensor dy, Tensor[] weight, {_FORM}, str backend) -> Tensor",
    f"embedding(Tensor indices, Tensor[] weight, {_FORM}, ScalarType dtype, str backend) -> Tensor",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]


class Operators(Backend):
    """A backend, called through the operators: it takes what `bittensor.checks` admits and refuses the rest.

    >>> import torch, bittensor
    >>> reference = Operators(bittensor.get_backend("reference"))
    >>> reference.pack(torch.tensor([[1, 2]], dtype=torch.uint8), 4)
    tensor([[33]])
    """

    protocol_version = PROTOCOL_VERSION

    def __init__(self, backend: Backend) -> None:
        self.name, self.capabilities = name_of(backend), backend.capabilities

    def pack(self, codes: torch.Tensor, bits: int) -> torch.Tensor:
        result: torch.Tensor = torch.ops.bittensor.pack.default(codes, bits, self.name)
        return result

    def unpack(self, words: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
        result: torch.Tensor = torch.ops.bittensor.unpack.default(words, columns, bits, self.name)
        return result

    def packed_matmul(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        bits: int,
        in_features: int | None,
        x_zero: int,
        weight_zero: int,
        scale: torch.Tensor | None,
        out_zero: int,
        out_dtype: torch.dtype | None,
    ) -> torch.Tensor:
        result: torch.Tensor = torch.ops.bittensor.packed_matmul.default(
            x, weight, bias, bits, in_features, x_zero, weight_zero, scale, out_zero, out_dtype, self.name
        )
        return result

    def linear(
        self,
        x: torch.Tensor,
        weight: PreparedWeight,
        bias: torch.Tensor | None,
        activation_mode: str,
        epilogue: str | None,
    ) -> torch.Tensor:
        result: torch.Tensor = torch.ops.bittensor.linear.default(
            x,
            *_flat(weight),
            bias,
            activation_mode,
            epilogue,
            self.name,
        )
        return result

    def linear_input_grad(self, dy: torch.Tensor, weight: PreparedWeight) -> torch.Tensor:
        result: torch.Tensor = torch.ops.bittensor.linear_input_grad.default(
            dy,
            *_flat(weight),
            self.name,
        )
        return result

    def embedding(self, indices: torch.Tensor, weight: PreparedWeight, dtype: torch.dtype) -> torch.Tensor:
        result: torch.Tensor = torch.ops.bittensor.embedding.default(
            indices,
            *_flat(weight),
            dtype,
            self.name,
        )
        return result


def _flat(weight: PreparedWeight) -> tuple[Any, ...]:
    """A weight as the operators take it; the inverse of `_prepared`."""
    form = weight.form
    return (
        list(weight.tensors),
        weight.layout,
        list(form.shape),
        form.bits,
        form.group_size,
        form.zero,
        form.scale_dtype,
    )


# What the operators compute. The arguments are checked here, where there are values: a trace has none.


def _pack(codes: torch.Tensor, bits: int, backend: str) -> torch.Tensor:
    computing = get_backend(backend)
    if not computing.capabilities.checks_arguments:
        check_pack(computing, codes, bits)
    return computing.pack(codes, bits)


def _unpack(words: torch.Tensor, columns: int, bits: int, backend: str) -> torch.Tensor:
    computing = get_backend(backend)
    if not computing.capabilities.checks_arguments:
        check_unpack(computing, words, columns, bits)
    return computing.unpack(words, columns, bits)


def _packed_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    bits: int,
    in_features: int | None,
    x_zero: int,
    weight_zero: int,
    scale: torch.Tensor | None,
    out_zero: int,
    out_dtype: torch.dtype | None,
    backend: str,
) -> torch.Tensor:
    computing = get_backend(backend)
    arguments = (x, weight, bias, bits, in_features, x_zero, weight_zero, scale, out_zero, out_dtype)
    if not computing.capabilities.checks_arguments:
        check_packed_matmul(computing, *arguments)
    return computing.packed_matmul(*arguments)


def _linear(
    x: torch.Tensor,
    weight: list[torch.Tensor],
    layout: str,
    shape: Sequence[int],
    bits: int,
    group_size: int,
    zero: str,
    scale_dtype: torch.dtype,
    bias: torch.Tensor | None,
    activation_mode: str,
    epilogue: str | None,
    backend: str,
) -> torch.Tensor:
    computing = get_backend(backend)
    prepared = _prepared(weight, layout, shape, bits, group_size, zero, scale_dtype)
    if not computing.capabilities.checks_arguments:
        check_product(computing, x, prepared.form, weight[0].device, bias, activation_mode, epilogue)
    return computing.linear(x, prepared, bias, activation_mode, epilogue)


def _linear_input_grad(
    dy: torch.Tensor,
    weight: list[torch.Tensor],
    layout: str,
    shape: Sequence[int],
    bits: int,
    group_size: int,
    zero: str,
    scale_dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    prepared = _prepared(weight, layout, shape, bits, group_size, zero, scale_dtype)
    computing = get_backend(backend)
    if "linear_input_grad" in computing.capabilities.operations:
        return computing.linear_input_grad(dy, prepared)
    return (dy.to(torch.float32) @ computing.restore(prepared).dequantize()).to(dy.dtype)


def _embedding(
    indices: torch.Tensor,
    weight: list[torch.Tensor],
    layout: str,
    shape: Sequence[int],
    bits: int,
    group_size: int,
    zero: str,
    scale_dtype: torch.dtype,
    dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    prepared = _prepared(weight, layout, shape, bits, group_size, zero, scale_dtype)
    computing = get_backend(backend)
    declares = "embedding" in computing.capabilities.operations
    if not (declares and computing.capabilities.checks_arguments):
        check_rows(computing, indices, prepared.form, weight[0].device, dtype)
    if declares:
        return computing.embedding(indices, prepared, dtype)
    if not indices.numel():
        return indices.new_empty((*indices.shape, shape[1]), dtype=dtype)
    rows = computing.restore(prepared).rows(indices.reshape(-1))
    return rows.dequantize(dtype).reshape(*indices.shape, shape[1])


def _prepared(
    weight: list[torch.Tensor],
    layout: str,
    shape: Sequence[int],
    bits: int,
    group_size: int,
    zero: str,
    scale_dtype: torch.dtype,
) -> PreparedWeight:
    rows, columns = shape
    form = WeightForm((rows, columns), bits, group_size, zero, scale_dtype)
    return PreparedWeight(form, layout, tuple(weight))


# Shapes and dtypes of the results, for programs that are traced.


def refuse_meta(**operands: torch.Tensor | Sequence[torch.Tensor] | None) -> None:
    """A fake stands for a tensor on a device with memory; one on meta itself is an argument like any other device.

    To be called with all operands: where one of several is on meta, torch takes the fake, whose result has no values.
    """
    for name, operand in operands.items():
        for tensor in operand if isinstance(operand, Sequence) else (operand,):
            if tensor is not None and tensor.device.type == "meta":
                raise ValueError(f"{name}: expected a tensor with memory, got one on meta")


def fake_pack(codes: torch.Tensor, bits: int, *_: Any) -> torch.Tensor:
    """The result of `Backend.pack` without its values."""
    refuse_meta(codes=codes)
    return codes.new_empty((*codes.shape[:-1], words_per_row(codes.shape[-1], bits)), dtype=torch.int64)


def fake_unpack(words: torch.Tensor, columns: int, bits: int, *_: Any) -> torch.Tensor:
    """The result of `Backend.unpack` without its values."""
    refuse_meta(words=words)
    return words.new_empty((*words.shape[:-1], columns), dtype=torch.uint8)


def fake_packed_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    bits: int,
    sums: bool,
) -> torch.Tensor:
    """The result of `Backend.packed_matmul` without its values."""
    refuse_meta(x=x, weight=weight, bias=bias, scale=scale)
    rows = weight.shape[0]
    columns, dtype = (rows, torch.int32) if sums else (words_per_row(rows, bits), torch.int64)
    return x.new_empty((*x.shape[:-1], columns), dtype=dtype)


def fake_linear(
    x: torch.Tensor, weight: Sequence[torch.Tensor], out_features: int, bias: torch.Tensor | None
) -> torch.Tensor:
    """The result of `Backend.linear` without its values."""
    refuse_meta(x=x, weight=weight, bias=bias)
    return x.new_empty((*x.shape[:-1], out_features))


def fake_linear_input_grad(dy: torch.Tensor, weight: Sequence[torch.Tensor], in_features: int) -> torch.Tensor:
    """The result of `Backend.linear_input_grad` without its values."""
    refuse_meta(dy=dy, weight=weight)
    return dy.new_empty((*dy.shape[:-1], in_features))


def fake_embedding(
    indices: torch.Tensor, weight: Sequence[torch.Tensor], columns: int, dtype: torch.dtype
) -> torch.Tensor:
    """The result of `Backend.embedding` without its values."""
    refuse_meta(indices=indices, weight=weight)
    return indices.new_empty((*indices.shape, columns), dtype=dtype)


def _fake_packed_matmul(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, bits: int, *rest: Any
) -> torch.Tensor:
    return fake_packed_matmul(x, weight, bias, rest[3], bits, sums=rest[-2] is torch.int32)


def _fake_linear(
    x: torch.Tensor, weight: list[torch.Tensor], layout: str, shape: Sequence[int], *rest: Any
) -> torch.Tensor:
    return fake_linear(x, weight, shape[0], rest[4])


def _fake_linear_input_grad(
    dy: torch.Tensor, weight: list[torch.Tensor], layout: str, shape: Sequence[int], *_: Any
) -> torch.Tensor:
    return fake_linear_input_grad(dy, weight, shape[1])


def _fake_embedding(
    indices: torch.Tensor, weight: list[torch.Tensor], layout: str, shape: Sequence[int], *rest: Any
) -> torch.Tensor:
    return fake_embedding(indices, weight, shape[1], rest[4])


# The gradient of linear: `bittensor.linear_gradient`, with the product from the operator.


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, *form, bias, activation_mode, epilogue, backend = inputs
    ctx.form, ctx.activation_mode, ctx.backend = form, activation_mode, backend
    save_for_gradients(ctx, x, weight, bias, epilogue, output)


def _backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    def linear(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        *weight, bias = rest
        result: torch.Tensor = torch.ops.bittensor.linear.default(
            x, weight, *ctx.form, bias, ctx.activation_mode, None, ctx.backend
        )
        return result

    def input_grad(grad: torch.Tensor, *weight: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.bittensor.linear_input_grad.default(grad, list(weight), *ctx.form, ctx.backend)
        return result

    needs = ctx.needs_input_grad
    grad_x, grad_bias = linear_gradients(ctx, dy, needs[0], needs[8], linear, input_grad)
    return grad_x, [None] * ctx.weight_tensors, *[None] * 6, grad_bias, None, None, None


def _save_input_grad(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    dy, weight, *ctx.form, ctx.backend = inputs
    ctx.out_features = dy.shape[-1]
    ctx.save_for_backward(*weight)


def _backward_of_input_grad(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    # The product with the weight is the transpose of the product with its transpose.
    weight, operators = list(ctx.saved_tensors), torch.ops.bittensor
    if "float" in get_backend(ctx.backend).capabilities.activation_modes:
        grad_dy = operators.linear.default(grad, weight, *ctx.form, None, "float", None, ctx.backend)
    else:  # the gradients of the unit vectors are the dequantized weight
        units = torch.eye(ctx.out_features, dtype=torch.float32, device=grad.device)
        dense = operators.linear_input_grad.default(units, weight, *ctx.form, ctx.backend)
        grad_dy = (grad.to(torch.float32) @ dense.T).to(grad.dtype)
    return grad_dy, [None] * len(weight), *[None] * 7


def autocast_linear(operator: Any) -> Any:
    """The operator under torch.autocast: x takes its dtype, and so has the result; the weight and the bias stay."""

    def run(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        dtype = torch.get_autocast_dtype("cpu")
        with torch.autocast("cpu", enabled=False):
            casts = x.is_floating_point() and x.dtype is not torch.float64  # which torch leaves alone, too
            result: torch.Tensor = operator(x.to(dtype) if casts else x, *rest)
        return result

    return run


for _name, _compute, _fake in (
    ("pack", _pack, fake_pack),
    ("unpack", _unpack, fake_unpack),
    ("packed_matmul", _packed_matmul, _fake_packed_matmul),
    ("linear", _linear, _fake_linear),
    ("linear_input_grad", _linear_input_grad, _fake_linear_input_grad),
    ("embedding", _embedding, _fake_embedding),
):
    _library.impl(_name, _compute, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"bittensor::{_name}", _fake, lib=_library)
torch.library.register_autograd("bittensor::linear", _backward, setup_context=_save, lib=_library)
torch.library.register_autograd(
    "bittensor::linear_input_grad", _backward_of_input_grad, setup_context=_save_input_grad, lib=_library
)
_library.impl("linear", autocast_linear(torch.ops.bittensor.linear.default), "AutocastCPU")  # type: ignore[no-untyped-call]
