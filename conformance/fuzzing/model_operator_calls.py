"""Calls of the operators of models: embeddings, convolutions, fused linears, feed-forward networks, attention, and the
layers of a decoder.

Embeddings and convolutions must do what the reference does. The operators themselves may be called with anything: they
refuse, or return a tensor of the shape that the operands say, and write nowhere but in the cache that they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import torch

import bittensor
from bittensor.fused import cache_shapes

from .choices import Choices
from .operands import (
    SIZES,
    Arguments,
    damaged,
    prepared_of_weight,
    some_floats,
    some_shape,
    spoiled,
    spoiled_tensor,
    weight_arguments,
)
from .operator_calls import compare, variants

T = TypeVar("T")

_GUARD = 64
"""Values before and behind a cache that nothing may write."""

_REFUSED = (RuntimeError, TypeError, ValueError, AttributeError, MemoryError)
"""What says no to foreign operands; a crash would end the process. For None, that may be a fake of torch's."""

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_ISAS = (-1, -1, 0, 1, 2, 3, 4, 5, -2)


def run(data: bytes) -> None:
    """Make the call that `data` describes."""
    choices = Choices(data)
    target = choices.one_of(variants())
    choices.one_of(_CALLS)(choices, target)


def _embedding(choices: Choices, target: str) -> None:
    weight = weight_arguments(choices)
    rows = weight["shape"][0]
    indices = torch.from_numpy(choices.generator().integers(0, rows, some_shape(choices)[:2]))
    if choices.below(8) == 1 and indices.numel():
        indices.view(-1)[choices.below(256) % indices.numel()] = choices.one_of((-1, rows, 2**31, 2**62, -(2**63)))
    arguments: Arguments = {
        "indices": indices.to(choices.one_of((torch.int64, torch.int32))),
        "dtype": choices.one_of(_FLOATS),
    }
    arguments = spoiled(choices, arguments)
    compare(target, lambda: bittensor.embedding(weight=bittensor.QuantizedWeight(**weight), **arguments))


def _convolution(choices: Choices, target: str) -> None:
    groups = choices.one_of((1, 1, 2, 3))
    channels, out_channels = (groups * choices.one_of((1, 2, 3, 8, 16, 17)) for _ in range(2))
    kernel, stride, dilation = ((choices.one_of((1, 2, 3)), choices.one_of((1, 2, 3))) for _ in range(3))
    paddings: tuple[int | str, ...] = (0, 1, 2, "same") if stride == (1, 1) else (0, 1, 2)
    padding, has_bias = choices.one_of(paddings), choices.below(2) == 1
    layer = torch.nn.Conv2d(channels, out_channels, kernel, stride, padding, dilation, groups, has_bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(some_floats(choices, tuple(parameter.shape), torch.float32))
    zero = choices.one_of(("symmetric", "integer", "float"))
    config = bittensor.QuantizeConfig(choices.one_of((4, 2, 8)), None, zero)
    packed = bittensor.nn.QuantizedConv2d.from_conv(layer, config)
    size = (choices.below(3), channels, choices.one_of(SIZES[:12]), choices.one_of(SIZES[:12]))
    x = some_floats(choices, size, choices.one_of(_FLOATS), choices.below(4) == 1)
    (images,) = spoiled(choices, {"x": x}).values()

    def call() -> torch.Tensor:
        with torch.no_grad():
            result: torch.Tensor = packed(images)
        return result

    compare(target, call)


def _foreign_embedding(choices: Choices, _: str) -> None:
    weight = weight_arguments(choices)
    blob = _mostly(choices, prepared_of_weight(weight))
    rows, k = weight["shape"]
    indices = torch.from_numpy(choices.generator().integers(0, rows, choices.one_of(SIZES)))
    indices = spoiled_tensor(choices, indices, one_in=4)
    columns = _or_else(choices, k, (*SIZES, -1, 2**62))
    dtype, isa = _or_else(choices, choices.one_of(_FLOATS), (torch.int64,)), choices.one_of(_ISAS)
    with suppress(*_REFUSED):
        result = torch.ops.bittensor_cpp.embedding(indices, blob, columns, dtype, isa)
        _expect(result, (*indices.shape, columns))


def _foreign_convolution(choices: Choices, _: str) -> None:
    kernel = [choices.one_of((1, 2, 3)), choices.one_of((1, 2, 3))]
    groups, channels = choices.one_of((1, 2, 3)), choices.one_of((1, 2, 8, 17))
    outputs = groups * choices.one_of((1, 3, 8, 16))
    weight = bittensor.quantize(torch.randn(outputs, kernel[0] * kernel[1] * channels), choices.one_of((4, 2, 8)), None)
    blob = _mostly(choices, bittensor.get_backend("cpp").prepare(weight).tensors[0])
    hostile = (0, -1, 4, 2**31 - 1, 2**31, 2**62)
    stride, padding, dilation = (
        [_or_else(choices, least + choices.below(3), hostile, one_in=32) for _ in range(count)]
        for count, least in ((2, 1), (4, 0), (2, 1))
    )
    kernel = kernel if choices.below(8) else [choices.one_of((1, 2, *hostile)) for _ in range(choices.below(4))]
    groups = _or_else(choices, groups, (1, 2, *hostile))
    x = torch.randn(
        choices.below(3), choices.below(9), choices.below(9), groups * channels if groups in (1, 2, 3) else 3
    )
    x = spoiled_tensor(choices, x.to(choices.one_of(_FLOATS)), one_in=6)
    bias = None if choices.below(2) else torch.randn(_or_else(choices, outputs, SIZES))
    outputs, activation = _or_else(choices, outputs, SIZES), _or_else(choices, choices.below(4), (-1, 4, 2**40))
    is_float, isa = choices.below(2) == 1, choices.one_of(_ISAS)
    with suppress(*_REFUSED):
        result = torch.ops.bittensor_cpp.conv2d(
            x, blob, outputs, bias, kernel, stride, padding, dilation, groups, is_float, activation, isa
        )
        _expect(result, (len(x), *result.shape[1:3], outputs))


def _foreign_fused_linear(choices: Choices, _: str) -> None:
    weight = weight_arguments(choices)
    n, k = weight["shape"]
    blob = _mostly(choices, prepared_of_weight(weight))
    gated, rows = choices.below(2) == 1, choices.one_of(SIZES)
    columns = _or_else(choices, 2 * k if gated else k, SIZES)
    dtype = choices.one_of(_FLOATS)
    x = spoiled_tensor(choices, torch.randn(rows, columns).to(dtype), one_in=6)
    norm = torch.randn(_or_else(choices, columns, SIZES)) if not gated and choices.below(2) else None
    residual = torch.randn(rows, _or_else(choices, n, SIZES)).to(dtype) if choices.below(2) else None
    operands = [None if each is None else spoiled_tensor(choices, each, one_in=6) for each in (norm, residual)]
    epsilon, outputs = choices.one_of((1e-5, 0.0, -1.0, float("nan"))), _or_else(choices, n, (*SIZES, -1))
    gated = _or_else(choices, gated, (True, False))
    with suppress(*_REFUSED):
        result = torch.ops.bittensor_cpp.fused_linear(
            x, blob, outputs, operands[0], epsilon, gated, operands[1], choices.below(2) == 1, choices.one_of(_ISAS)
        )
        _expect(result, (*x.shape[:-1], outputs))


def _foreign_feed_forward(choices: Choices, _: str) -> None:
    up, columns = weight_arguments(choices), choices.one_of((8, 16, 33))
    hidden, k = up["shape"]
    weight = bittensor.quantize(
        torch.randn(columns, _or_else(choices, hidden, (8, 24))), choices.one_of((4, 8, 2)), None
    )
    blobs = prepared_of_weight(up), bittensor.get_backend("cpp").prepare(weight).tensors[0]
    blobs = _mostly(choices, blobs[0], one_in=6), _mostly(choices, blobs[1], one_in=6)
    shape = choices.one_of(SIZES), _or_else(choices, k, SIZES)
    x = spoiled_tensor(choices, torch.randn(shape).to(choices.one_of(_FLOATS)), one_in=6)
    biases = [
        spoiled_tensor(choices, torch.randn(_or_else(choices, each, SIZES)), one_in=6) if choices.below(2) else None
        for each in (hidden, columns)
    ]
    outputs, activation = _or_else(choices, columns, (*SIZES, -1)), _or_else(choices, choices.below(4), (-1, 4, 2**40))
    is_float, isa = choices.below(2) == 1, choices.one_of(_ISAS)
    with suppress(*_REFUSED):
        result = torch.ops.bittensor_cpp.feed_forward(
            x, blobs[0], biases[0], blobs[1], outputs, biases[1], is_float, activation, isa
        )
        _expect(result, (*x.shape[:-1], outputs))


def _foreign_attention(choices: Choices, _: str) -> None:
    heads, shared_heads, size, tokens, capacity, position = _attention(choices)
    projections = torch.randn(tokens, (heads + 2 * shared_heads) * size)
    angles = [torch.randn(tokens, size), torch.randn(tokens, size)]
    operands = [spoiled_tensor(choices, each, one_in=6) for each in (projections, *angles)]
    caches, unchanged = _guarded_caches(choices, cache_shapes(shared_heads, capacity, size))
    passed = _number_of_heads(choices, heads)
    with suppress(*_REFUSED):
        result = torch.ops.bittensor_cpp.attend(*operands, *caches, position, passed, choices.one_of(_ISAS))
        _expect(result, (len(operands[0]), passed * size))
    unchanged()


def _foreign_bidirectional_attention(choices: Choices, _: str) -> None:
    batch, shared_heads, size = choices.one_of((1, 2, 3, 0)), 1 + choices.below(2), choices.one_of((16, 1, 8, 24, 33))
    heads, tokens, keys = shared_heads * (1 + choices.below(3)), choices.one_of(SIZES), choices.one_of(SIZES)
    shapes = [(batch, tokens, heads, size), *[(batch, keys, shared_heads, size)] * 2]
    if choices.below(8) == 1:
        which, place = choices.below(3), choices.below(4)
        shapes[which] = (*shapes[which][:place], choices.one_of((0, 1, 2, 63)), *shapes[which][place + 1 :])
    operands = [spoiled_tensor(choices, torch.randn(shape).transpose(1, 2), one_in=6) for shape in shapes]
    mask = None
    if choices.below(2):
        mask = torch.rand(_or_else(choices, batch, (0, 1, 4)), _or_else(choices, keys, SIZES)) < 0.5
        mask = spoiled_tensor(choices, mask, one_in=6)
    with suppress(*_REFUSED):
        result = torch.ops.bittensor_cpp.attend_bidirectional(*operands, mask, 0.5, choices.one_of(_ISAS))
        query = operands[0]
        _expect(result, (query.shape[0], query.shape[2], query.shape[1] * query.shape[3]))


def _foreign_decoder(choices: Choices, _: str) -> None:
    heads, shared_heads, size, tokens, capacity, position = _attention(choices)
    layers, width, gates = choices.below(3), choices.one_of((8, 16, 24, 33)), choices.one_of((8, 16, 20))
    shapes = (((heads + 2 * shared_heads) * size, width), (width, heads * size), (2 * gates, width), (width, gates))
    weights = []
    for rows, columns in shapes * layers:
        values = torch.randn(rows, columns) if choices.below(16) else torch.randn(columns, rows)
        weight = bittensor.quantize(values, choices.one_of((4, 8, 2)), None)
        memory = bittensor.get_backend("cpp").prepare(weight).tensors[0]
        weights.append(_mostly(choices, memory, one_in=16))
    weights = weights[: len(weights) - (choices.below(16) == 1)]
    operands = [
        spoiled_tensor(choices, each, one_in=8)
        for each in (torch.randn(tokens, width), torch.randn(layers, 2, width), *torch.randn(2, tokens, size))
    ]
    shapes_of_caches = tuple((layers, *shape) for shape in cache_shapes(shared_heads, capacity, size))
    caches, unchanged = _guarded_caches(choices, shapes_of_caches)
    x, norms, cos, sin = operands
    passed, is_float, isa = _number_of_heads(choices, heads), choices.below(2) == 1, choices.one_of(_ISAS)
    with suppress(*_REFUSED):
        result = torch.ops.bittensor_cpp.decoder_layers(
            x, norms, weights, 1e-5, cos, sin, *caches, position, passed, is_float, isa
        )
        _expect(result, tuple(x.shape))
    unchanged()


def _attention(choices: Choices) -> tuple[int, int, int, int, int, int]:
    """Heads, heads of the cache, size of a head, new tokens, capacity and position; the last may not fit."""
    shared_heads = 1 + choices.below(2)
    heads, size = shared_heads * (1 + choices.below(3)), choices.one_of((2, 8, 16, 24, 3))
    tokens, capacity = choices.one_of((1, 1, 2, 3, 5, 65, 0)), choices.one_of((65, 1, 2, 63, 64, 130, 0))
    position = choices.below(max(1, capacity - tokens + 1)) if choices.below(8) else choices.one_of((-1, 64, 2**62))
    return heads, shared_heads, size, tokens, capacity, position


def _number_of_heads(choices: Choices, heads: int) -> int:
    return _or_else(choices, heads, (0, -1, 3, 2**20, 2**21, 2**62))


def _or_else(choices: Choices, right: T, others: Sequence[T], one_in: int = 8) -> T:
    return right if choices.below(one_in) else choices.one_of(others)


def _mostly(choices: Choices, memory: torch.Tensor, one_in: int = 3) -> torch.Tensor:
    """The memory of a prepared weight, or a damaged copy."""
    return memory if choices.below(one_in) else damaged(choices, memory)


def _guarded_caches(
    choices: Choices, shapes: tuple[tuple[int, ...], ...]
) -> tuple[list[torch.Tensor], Callable[[], None]]:
    """Caches of zeros, mostly of these shapes, and what raises if anything around them was written."""
    caches, guards = [], []
    for shape in shapes:
        if choices.below(16) == 1:
            place = choices.below(len(shape))
            shape = (*shape[:place], choices.one_of((0, 1, 2, 63)), *shape[place + 1 :])
        count = math.prod(shape)
        memory = torch.zeros(count + 2 * _GUARD)
        memory[:_GUARD] = memory[_GUARD + count :] = 7.0
        caches.append(spoiled_tensor(choices, memory[_GUARD : _GUARD + count].view(shape), one_in=12))
        guards += [memory[:_GUARD], memory[_GUARD + count :]]

    def unchanged() -> None:
        if any(bool((guard != 7.0).any()) for guard in guards):
            raise AssertionError("memory around the cache was written")

    return caches, unchanged


def _expect(result: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(result.shape) != shape:
        raise AssertionError(f"expected a result of shape {list(shape)}, got {list(result.shape)}")


_CALLS: tuple[Callable[[Choices, str], None], ...] = (
    _embedding,
    _convolution,
    _foreign_embedding,
    _foreign_convolution,
    _foreign_fused_linear,
    _foreign_attention,
    _foreign_bidirectional_attention,
    _foreign_decoder,
    _foreign_feed_forward,
)
