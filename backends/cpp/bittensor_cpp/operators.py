"""The operators of `libbittensor_torch`, namespace ``bittensor_cpp``: loading them, and what torch needs to trace them.

They are registered, and compute, in C++: a program that was exported or compiled ahead of time runs with the library
alone. This file adds what a trace needs and a call does not: fakes, the gradient of `linear`, and its autocast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bittensor.checks import dtype_name
from bittensor.codes import words_per_row
from bittensor.convolution import ConvolutionGeometry
from bittensor.linear_gradient import linear_gradients, save_for_gradients
from bittensor.operators import (
    autocast_linear,
    fake_embedding,
    fake_linear,
    fake_linear_input_grad,
    fake_pack,
    fake_packed_matmul,
    fake_unpack,
    refuse_meta,
)
from bittensor.prepared_weight import ZERO_KINDS

from . import _native

LIBRARY = Path(_native.__file__).with_name("libbittensor_torch.so")
"""What a process without Python loads to run exported programs."""

EPILOGUES = {None: 0, "relu": 1, "gelu": 2, "silu": 3}
"""The argument `activation` of the linear."""

FLOAT_MODES = {"int8": False, "float": True}
"""The argument `float_mode` of the linears."""

torch.ops.load_library(LIBRARY)  # type: ignore[no-untyped-call]
_library = torch.library.Library("bittensor_cpp", "FRAGMENT")  # type: ignore[no-untyped-call]
_EPILOGUE_OF = {number: epilogue for epilogue, number in EPILOGUES.items()}


def _fake_pack(codes: torch.Tensor, bits: int = 4, isa: int = -1) -> torch.Tensor:
    return fake_pack(codes, bits)


def _fake_unpack(words: torch.Tensor, columns: int, bits: int = 4, isa: int = -1) -> torch.Tensor:
    return fake_unpack(words, columns, bits)


def _fake_packed_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    bits: int = 4,
    in_features: int | None = None,
    x_zero: int = 0,
    weight_zero: int = 0,
    scale: torch.Tensor | None = None,
    out_zero: int = 0,
    sums: bool = False,
    isa: int = -1,
) -> torch.Tensor:
    return fake_packed_matmul(x, weight, bias, scale, bits, sums)


def _fake_prepare(
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    offsets: torch.Tensor | None,
    in_features: int,
    bits: int,
    group_size: int,
    isa: int = -1,
) -> torch.Tensor:
    refuse_meta(words=words, scales=scales, zeros=zeros, offsets=offsets)
    zero = 1 if zeros is not None else 2 if offsets is not None else 0
    size = _native.prepared_bytes(
        int(words.shape[0]), int(in_features), bits, group_size, zero, dtype_name(scales.dtype)
    )
    return words.new_empty((size,), dtype=torch.uint8)


def _fake_restore(
    prepared: torch.Tensor,
    out_features: int,
    in_features: int,
    bits: int,
    group_size: int,
    zero: int,
    scale_dtype: torch.dtype,
    isa: int = -1,
) -> tuple[torch.Tensor, ...]:
    refuse_meta(prepared=prepared)
    grouped = (out_features, -(-in_features // group_size))
    words = prepared.new_empty((out_features, words_per_row(in_features, bits)), dtype=torch.int64)
    zeros = prepared.new_empty(grouped if ZERO_KINDS[zero] == "integer" else (0,), dtype=torch.uint8)
    offsets = prepared.new_empty(grouped if ZERO_KINDS[zero] == "float" else (0,), dtype=scale_dtype)
    return words, prepared.new_empty(grouped, dtype=scale_dtype), zeros, offsets


def _fake_linear(
    x: torch.Tensor,
    prepared: torch.Tensor,
    out_features: int,
    bias: torch.Tensor | None = None,
    float_mode: bool = False,
    activation: int = 0,
    isa: int = -1,
) -> torch.Tensor:
    return fake_linear(x, [prepared], out_features, bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, prepared, out_features, bias, float_mode, activation, isa = inputs
    ctx.in_features, ctx.out_features, ctx.float_mode, ctx.isa = x.shape[-1], out_features, float_mode, isa
    save_for_gradients(ctx, x, [prepared], bias, _EPILOGUE_OF[activation], output)


def _backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    def linear(x: torch.Tensor, prepared: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = torch.ops.bittensor_cpp.linear.default(
            x, prepared, ctx.out_features, bias, ctx.float_mode, 0, ctx.isa
        )
        return result

    def input_grad(grad: torch.Tensor, prepared: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.bittensor_cpp.linear_input_grad.default(
            grad, prepared, ctx.in_features, ctx.isa
        )
        return result

    needs = (*ctx.needs_input_grad, False, False)  # without the last arguments where they are at their defaults
    grad_x, grad_bias = linear_gradients(ctx, dy, needs[0], needs[3], linear, input_grad)
    return grad_x, None, None, grad_bias, None, None, None


def _save_input_grad(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    dy, prepared, _, isa = inputs
    ctx.out_features, ctx.isa = dy.shape[-1], isa
    ctx.save_for_backward(prepared)


def _backward_of_input_grad(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    # The product with the weight is the transpose of the product with its transpose.
    (prepared,) = ctx.saved_tensors
    linear = torch.ops.bittensor_cpp.linear.default
    grad_dy: torch.Tensor = linear(grad, prepared, ctx.out_features, None, True, 0, ctx.isa)
    return grad_dy, None, None, None


def _fake_linear_input_grad(dy: torch.Tensor, prepared: torch.Tensor, in_features: int, isa: int = -1) -> torch.Tensor:
    return fake_linear_input_grad(dy, [prepared], in_features)


def _fake_fused_linear(
    x: torch.Tensor,
    prepared: torch.Tensor,
    out_features: int,
    norm_weight: torch.Tensor | None = None,
    norm_epsilon: float = 0.0,
    gated: bool = False,
    residual: torch.Tensor | None = None,
    float_mode: bool = False,
    isa: int = -1,
) -> torch.Tensor:
    refuse_meta(x=x, prepared=prepared, norm_weight=norm_weight, residual=residual)
    return x.new_empty((*x.shape[:-1], out_features))


def _fake_feed_forward(
    x: torch.Tensor,
    up: torch.Tensor,
    up_bias: torch.Tensor | None,
    down: torch.Tensor,
    out_features: int,
    down_bias: torch.Tensor | None,
    float_mode: bool = False,
    activation: int = 0,
    isa: int = -1,
) -> torch.Tensor:
    refuse_meta(x=x, up=up, up_bias=up_bias, down=down, down_bias=down_bias)
    return x.new_empty((*x.shape[:-1], out_features))


def _fake_attend(
    projections: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
    heads: int,
    isa: int = -1,
) -> torch.Tensor:
    refuse_meta(projections=projections, cos=cos, sin=sin, keys=keys, values=values)
    if projections.dim() != 2 or keys.dim() != 4:
        raise ValueError(
            f"projections, keys: expected 2 and 4 dimensions, got {list(projections.shape)} and {list(keys.shape)}"
        )
    return projections.new_empty((projections.shape[0], heads * keys.shape[2]))


def _fake_attend_bidirectional(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None,
    scale: float,
    isa: int = -1,
) -> torch.Tensor:
    refuse_meta(query=query, key=key, value=value, key_mask=key_mask)
    if query.dim() != 4:
        raise ValueError(f"query: expected 4 dimensions, got {list(query.shape)}")
    sequences, heads, tokens, size = query.shape
    return query.new_empty((sequences, tokens, heads * size))


def _fake_decoder_layers(
    x: torch.Tensor,
    norms: torch.Tensor,
    weights: list[torch.Tensor],
    norm_epsilon: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
    heads: int,
    float_mode: bool = False,
    isa: int = -1,
) -> torch.Tensor:
    refuse_meta(x=x, norms=norms, weights=weights, cos=cos, sin=sin, keys=keys, values=values)
    return x.new_empty(x.shape)


def _fake_embedding(
    indices: torch.Tensor, prepared: torch.Tensor, columns: int, dtype: torch.dtype = torch.float32, isa: int = -1
) -> torch.Tensor:
    return fake_embedding(indices, [prepared], columns, dtype)


def _fake_conv2d(
    x: torch.Tensor,
    prepared: torch.Tensor,
    out_channels: int,
    bias: torch.Tensor | None,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int = 1,
    float_mode: bool = False,
    activation: int = 0,
    isa: int = -1,
) -> torch.Tensor:
    refuse_meta(x=x, prepared=prepared, bias=bias)
    geometry = ConvolutionGeometry(kernel_size, stride, padding, dilation, groups)
    return x.new_empty((x.shape[0], *geometry.result_size(x.shape[1], x.shape[2]), out_channels))


for _name, _fake in (
    ("pack", _fake_pack),
    ("unpack", _fake_unpack),
    ("packed_matmul", _fake_packed_matmul),
    ("prepare", _fake_prepare),
    ("restore", _fake_restore),
    ("linear", _fake_linear),
    ("linear_forward", _fake_linear),
    ("linear_input_grad", _fake_linear_input_grad),
    ("fused_linear", _fake_fused_linear),
    ("feed_forward", _fake_feed_forward),
    ("attend", _fake_attend),
    ("attend_bidirectional", _fake_attend_bidirectional),
    ("decoder_layers", _fake_decoder_layers),
    ("embedding", _fake_embedding),
    ("conv2d", _fake_conv2d),
):
    torch.library.register_fake(f"bittensor_cpp::{_name}", _fake, lib=_library)
torch.library.register_autograd("bittensor_cpp::linear", _backward, setup_context=_save, lib=_library)
torch.library.register_autograd(
    "bittensor_cpp::linear_input_grad", _backward_of_input_grad, setup_context=_save_input_grad, lib=_library
)
for _name in ("linear", "linear_forward", "feed_forward", "conv2d"):
    _library.impl(_name, autocast_linear(getattr(torch.ops.bittensor_cpp, _name).default), "AutocastCPU")  # type: ignore[no-untyped-call]
