"""Arguments of operations: valid ones, and spoiled ones that a careless or hostile caller might bring."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import bittensor

from .choices import Choices

Arguments = dict[str, Any]

SIZES = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 63, 64, 65, 72, 100, 0, 129)
DTYPES = (
    torch.uint8,
    torch.int64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.int8,
    torch.float64,
    torch.bool,
    torch.complex64,
)
HOSTILE_NUMBERS = (-1, 0, 3, 9, 16, 255, 256, 2**31 - 1, 2**31, 2**62, 2**63, -(2**63), 2**80, True, 1.5, "4", None)
_HOSTILE_FLOATS = (np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, -3e38, 1e-45, 2.0**-100, 65504.0, 1e-8)


def weight_arguments(choices: Choices) -> Arguments:
    """Arguments of `bittensor.QuantizedWeight`."""
    bits = choices.one_of((4, 2, 8))
    n, k = max(1, choices.one_of(SIZES)), max(1, choices.one_of(SIZES))
    group_size = choices.one_of((None, 8, 16, 32, 64))
    if group_size is not None and group_size > k:
        group_size = None
    groups = -(-k // (group_size or k))
    dtype = choices.one_of((torch.float32, torch.float16, torch.bfloat16))
    zero = choices.below(3)
    generator = choices.generator()
    return {
        "words": some_words(choices, (n, k), bits),
        "scales": some_floats(choices, (n, groups), dtype),
        "zeros": torch.from_numpy(generator.integers(0, 1 << bits, (n, groups), dtype=np.uint8)) if zero == 1 else None,
        "offsets": some_floats(choices, (n, groups), dtype) if zero == 2 else None,
        "shape": (n, k),
        "group_size": group_size,
        "bits": bits,
    }


def some_shape(choices: Choices) -> tuple[int, ...]:
    """Up to three dimensions, or five."""
    return tuple(choices.one_of(SIZES) for _ in range(1 + choices.below(3))) if choices.below(8) else (2, 1, 3, 1, 9)


def some_codes(choices: Choices, shape: tuple[int, ...], bits: int) -> torch.Tensor:
    """Codes of so many bits."""
    return torch.from_numpy(choices.generator().integers(0, 1 << bits, shape, dtype=np.uint8))


def some_words(choices: Choices, shape: tuple[int, ...], bits: int) -> torch.Tensor:
    """Words of codes ``shape``, with garbage behind the last code."""
    *leading, columns = shape
    generator = choices.generator()
    return torch.from_numpy(generator.integers(-(2**63), 2**63 - 1, (*leading, -(-columns * bits // 64))))


def some_floats(choices: Choices, shape: tuple[int, ...], dtype: torch.dtype, hostile: bool = False) -> torch.Tensor:
    """Normal values; hostile: with some that are not finite, or at the ends of the range."""
    generator = choices.generator()
    values = generator.normal(size=shape) * choices.one_of((1.0, 1e-3, 300.0))
    if hostile and values.size:
        for _ in range(1 + choices.below(3)):
            values.flat[int(generator.integers(values.size))] = choices.one_of(_HOSTILE_FLOATS)
    return torch.from_numpy(values).to(dtype)


def spoiled(choices: Choices, arguments: Arguments) -> Arguments:
    """The arguments with up to two of them replaced; two of three times none, or the layout of tensors only."""
    spoiled = {
        name: laid_out(choices, value) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    for _ in range(max(0, choices.below(6) - 3)):
        name = choices.one_of(tuple(spoiled))
        value = spoiled[name]
        if isinstance(value, torch.Tensor):
            spoiled[name] = spoiled_tensor(choices, value)
        else:
            spoiled[name] = choices.one_of(HOSTILE_NUMBERS)
    return spoiled


def laid_out(choices: Choices, tensor: torch.Tensor) -> torch.Tensor:
    """The same values in other strides."""
    layout = choices.below(6)
    if layout == 1:
        return torch.stack((tensor, torch.zeros_like(tensor)), dim=-1)[..., 0]
    if layout == 2 and tensor.dim() > 1:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == 3 and tensor.dim() > 0:
        return torch.cat((torch.ones_like(tensor[..., :1]), tensor), dim=-1)[..., 1:] if tensor.shape[-1] else tensor
    if layout == 4 and tensor.dim() > 1:
        return tensor[:1].expand_as(tensor)
    return tensor


def spoiled_tensor(choices: Choices, tensor: torch.Tensor, one_in: int = 1) -> Any:
    """Something else in the place of `tensor`."""
    if tensor.layout is not torch.strided or tensor.is_meta or (one_in > 1 and choices.below(one_in)):
        return tensor
    kind = choices.below(14)
    if kind == 0:
        return tensor.to(choices.one_of(DTYPES))
    if kind == 1:
        return tensor[..., :-1] if tensor.dim() else tensor
    if kind == 2:
        return torch.cat((tensor, tensor), dim=-1) if tensor.dim() else tensor
    if kind == 3:
        return tensor.unsqueeze(0)
    if kind == 4:
        return tensor.flatten()
    if kind == 5:
        return tensor.to("meta")
    if kind == 6:
        return tensor.to_sparse() if tensor.dim() else tensor
    if kind == 7:
        return choices.one_of((None, 3, 1.5, "tensor", [1, 2], tensor.tolist()))
    if kind == 8:
        return torch.empty((0, *tensor.shape), dtype=tensor.dtype)
    if kind == 9:
        return tensor[:0] if tensor.dim() else tensor
    if kind == 10:
        return tensor.reshape(-1)[0] if tensor.numel() else tensor.sum()
    if kind == 11 and tensor.is_floating_point():
        return torch._neg_view(tensor)
    if kind == 12 and tensor.is_floating_point() and tensor.numel():
        hostile = tensor.clone(memory_format=torch.contiguous_format)
        hostile.view(-1)[choices.below(256) % tensor.numel()] = choices.one_of(_HOSTILE_FLOATS)
        return hostile
    hostile = tensor.clone(memory_format=torch.contiguous_format)
    if tensor.numel() and not tensor.is_floating_point():
        value = torch.tensor(choices.one_of((255, 16, 3, 127))).to(tensor.dtype)
        hostile.view(-1)[choices.below(256) % tensor.numel()] = value
    return hostile


def prepared_of_weight(weight: Arguments) -> torch.Tensor:
    """The memory in which the C++ backend has the weight."""
    backend = bittensor.get_backend("cpp")
    return backend.prepare(bittensor.QuantizedWeight(**weight)).tensors[0]


def damaged(choices: Choices, memory: torch.Tensor) -> torch.Tensor:
    """A copy of the memory of a prepared weight, mostly with some other bytes or without its end."""
    copy = bytearray(memory.numpy().tobytes())
    for _ in range(choices.below(4)):
        place = choices.below(64) if choices.below(4) else choices.below(256) * len(copy) // 256
        copy[place : place + 1] = choices.take(1)
    return torch.tensor(copy[: len(copy) - choices.one_of((0, 0, 0, 1, 63, 64, 200))], dtype=torch.uint8)
