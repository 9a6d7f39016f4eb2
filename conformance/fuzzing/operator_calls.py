"""Calls of the operations with arguments that a careless or hostile caller might bring.

Arguments start out valid, and a few of them are spoiled. Whatever comes in, the C++ backend must do what the reference
does: return the same result, or refuse with the same kind of error.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from bittensor_conformance import oracle_linear
from bittensor_conformance.targets import expand

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
REFUSALS = (TypeError, ValueError, bittensor.UnsupportedOperationError)
"""What a public function may raise, whatever it is given."""

_HOSTILE_NUMBERS = (-1, 0, 3, 9, 16, 255, 256, 2**31 - 1, 2**31, 2**62, 2**63, -(2**63), 2**80, True, 1.5, "4", None)
_HOSTILE_FLOATS = (np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, -3e38, 1e-45, 2.0**-100, 65504.0, 1e-8)
_targets: list[str] = []


def run(data: bytes) -> None:
    """Make the call that `data` describes on a variant of the C++ backend and on the reference, and compare."""
    choices = Choices(data)
    if not _targets:
        _targets.extend(expand(["cpp"]))
    target = choices.one_of(_targets)
    choices.one_of(_CALLS)(choices, target)


def _pack(choices: Choices, target: str) -> None:
    bits = choices.one_of((4, 2, 8, 1))
    arguments = _spoiled(choices, {"weight": _codes(choices, _shape(choices), bits), "bits": bits})
    _compare(target, lambda: bittensor.pack_weights(**arguments))


def _unpack(choices: Choices, target: str) -> None:
    bits = choices.one_of((4, 2, 8, 1))
    *leading, columns = _shape(choices)
    words = _words(choices, (*leading, columns), bits)
    if choices.below(2):
        arguments = _spoiled(choices, {"packed": words, "in_features": columns, "bits": bits})
        _compare(target, lambda: bittensor.unpack_weights(**arguments))
    else:
        rows = int(np.prod(leading))
        arguments = _spoiled(choices, {"packed": words, "rows": rows, "cols": columns, "bits": bits})
        _compare(target, lambda: bittensor.unpack_tensor(**arguments))


def _packed_matmul(choices: Choices, target: str) -> None:
    bits = choices.one_of((4, 2, 8, 1))
    *leading, k = _shape(choices)
    n = choices.one_of(SIZES)
    is_packed = choices.below(2) == 1
    scale = choices.below(5)
    valid: Arguments = {
        "x": _words(choices, (*leading, k), bits) if is_packed else _codes(choices, (*leading, k), bits),
        "weight": _words(choices, (n, k), bits),
        "bias": choices.one_of((None, torch.arange(n, dtype=torch.int32) - 3, torch.arange(n, dtype=torch.uint8))),
        "bits": bits,
        "in_features": k if is_packed or choices.below(2) else None,
        "x_zero": choices.below(1 << bits),
        "weight_zero": choices.below(1 << bits),
        "scale": (None, 0.25, torch.tensor(-0.5), torch.tensor([0.01]), torch.linspace(-1, 1, n))[scale],
        "out_zero": choices.below(1 << bits) if scale else 0,
        "out_dtype": torch.int32 if not scale and choices.below(2) else None,
    }
    arguments = _spoiled(choices, valid)
    _compare(target, lambda: bittensor.packed_matmul(**arguments))


def _weight(choices: Choices) -> Arguments:
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
        "words": _words(choices, (n, k), bits),
        "scales": _floats(choices, (n, groups), dtype),
        "zeros": torch.from_numpy(generator.integers(0, 1 << bits, (n, groups), dtype=np.uint8)) if zero == 1 else None,
        "offsets": _floats(choices, (n, groups), dtype) if zero == 2 else None,
        "shape": (n, k),
        "group_size": group_size,
        "bits": bits,
    }


def _prepare_and_restore(choices: Choices, target: str) -> None:
    arguments = _spoiled(choices, _weight(choices))

    def call() -> torch.Tensor:
        backend = bittensor.current_backend()
        weight = bittensor.QuantizedWeight(**arguments)
        restored = backend.restore(backend.prepare(weight))
        if not restored.equal(weight):
            raise AssertionError("the restored weight is another")
        return restored.dequantize()

    _compare(target, call)


def _linear(choices: Choices, target: str) -> None:
    weight = _weight(choices)
    n, k = weight["shape"]
    *leading, _ = _shape(choices)
    dtype = choices.one_of((torch.float32, torch.float16, torch.bfloat16))
    arguments: Arguments = {
        "x": _floats(choices, (*leading, k), dtype, choices.below(4) == 1),
        "bias": _floats(choices, (n,), choices.one_of((torch.float32, torch.float16))) if choices.below(2) else None,
        "activation_mode": choices.one_of(("int8", "float")),
        "epilogue": choices.one_of((None, "relu", "gelu", "silu")),
    }
    is_weight_spoiled = choices.below(4) == 1
    weight = _spoiled(choices, weight) if is_weight_spoiled else weight
    arguments = arguments if is_weight_spoiled else _spoiled(choices, arguments)
    mode = arguments.get("activation_mode")

    def call() -> torch.Tensor:
        return bittensor.linear(weight=bittensor.QuantizedWeight(**weight), **arguments)

    def allowed() -> oracle_linear.Interval:
        x, bias = (None if each is None else _rows(each) for each in (arguments["x"], arguments["bias"]))
        assert x is not None
        epilogue, name = arguments["epilogue"], _float_name(arguments["x"].dtype)
        return oracle_linear.linear_float(x, _oracle(weight), None if bias is None else bias[0], epilogue, name)

    _compare(target, call, allowed if mode == "float" else None)


def _linear_input_grad(choices: Choices, target: str) -> None:
    weight = _weight(choices)
    *leading, _ = _shape(choices)
    dtype = choices.one_of((torch.float32, torch.float16, torch.bfloat16))
    dy = _floats(choices, (*leading, weight["shape"][0]), dtype, choices.below(4) == 1)

    def call() -> torch.Tensor:
        backend = bittensor.current_backend()
        return backend.linear_input_grad(dy, backend.prepare(bittensor.QuantizedWeight(**weight)))

    _compare(target, call, lambda: oracle_linear.linear_input_grad(_rows(dy), _oracle(weight), _float_name(dy.dtype)))


def _foreign_operands(choices: Choices, target: str) -> None:
    """The operators themselves, which a program may call with anything: they refuse, or return a tensor."""
    operators = torch.ops.bittensor_cpp
    weight = _weight(choices)
    prepared = _prepared(weight)
    if prepared is None:
        return
    damaged = bytearray(prepared.numpy().tobytes())
    for _ in range(choices.below(4)):
        place = choices.below(64) if choices.below(4) else choices.below(256) * len(damaged) // 256
        damaged[place : place + 1] = choices.take(1)
    damaged = damaged[: len(damaged) - choices.one_of((0, 0, 0, 1, 63, 64, 200))]
    blob = torch.tensor(damaged, dtype=torch.uint8)
    n, k = weight["shape"]
    rows, columns = choices.one_of(SIZES), choices.one_of((k, n, *SIZES))
    x = _spoiled_tensor(choices, torch.randn(rows, columns), one_in=8)
    isa = choices.one_of((-1, -1, 0, 1, 2, 3, 4, 5, -2))
    calls: tuple[Callable[[], Any], ...] = (
        lambda: operators.linear(x, blob, choices.one_of((n, columns, -1, 2**62)), None, choices.below(2) == 1,
                                 choices.below(6) - 1, isa),
        lambda: operators.linear_forward(x, blob, n, torch.randn(choices.one_of((n, *SIZES))), choices.below(2) == 1),
        lambda: operators.linear_input_grad(x, blob, choices.one_of((k, *SIZES)), isa),
        lambda: operators.restore(blob, n, k, weight["bits"], choices.one_of((weight["group_size"] or k, 8, 0, -8)),
                                  choices.below(4), weight["scales"].dtype, isa),
        lambda: operators.prepare(_spoiled_tensor(choices, weight["words"]), weight["scales"], weight["zeros"],
                                  weight["offsets"], choices.one_of((k, 0, -1, 2**62, 2**63 - 1)), weight["bits"],
                                  choices.one_of((weight["group_size"] or k, 8, 0, -8, 2**62)), isa),
        lambda: operators.unpack(_spoiled_tensor(choices, weight["words"]), choices.one_of((k, -1, 2**63 - 1)),
                                 choices.one_of((weight["bits"], 3, 0, 2**40)), isa),
        lambda: operators.pack(torch.empty(choices.one_of(((0, 2**62), (0, 2**63 - 1), (2**40, 2**40, 0), (0,))),
                                           dtype=torch.uint8), weight["bits"], isa),
    )  # fmt: skip
    with suppress(RuntimeError, TypeError, ValueError):  # refused with a message; a crash would end the process
        choices.one_of(calls)()


_CALLS: tuple[Callable[[Choices, str], None], ...] = (
    _pack,
    _unpack,
    _packed_matmul,
    _prepare_and_restore,
    _linear,
    _linear_input_grad,
    _foreign_operands,
)


def _compare(
    target: str, call: Callable[[], torch.Tensor], allowed: Callable[[], oracle_linear.Interval] | None = None
) -> None:
    """Make the call on both backends; results are equal, or lie in the interval that is `allowed`."""
    mine, theirs = _outcome(target, call), _outcome("reference", call)
    if isinstance(mine, Exception) or isinstance(theirs, Exception):
        if type(mine) is not type(theirs):
            raise AssertionError(f"{target}: {_shown(mine)}\nreference: {_shown(theirs)}")
        return
    if mine.dtype is not theirs.dtype or mine.shape != theirs.shape:
        raise AssertionError(f"{target}: {_shown(mine)}\nreference: {_shown(theirs)}")
    if allowed is None:
        if not torch.equal(_comparable(mine), _comparable(theirs)):
            raise AssertionError(f"{target}: {mine}\nreference: {theirs}")
        return
    interval = allowed()
    for name, result in ((target, mine), ("reference", theirs)):
        values = _rows(result).astype(np.float64).reshape(interval.center.shape)
        with np.errstate(invalid="ignore"):
            inside = np.abs(values - interval.center) <= interval.reach
        if (interval.comparable & ~inside).any():
            raise AssertionError(f"{name}: {values}\nexpected {interval.center} +- {interval.reach}")


def _outcome(name: str, call: Callable[[], torch.Tensor]) -> torch.Tensor | Exception:
    with bittensor.use_backend(name):
        try:
            return call()
        except REFUSALS as error:
            return error


def _comparable(result: torch.Tensor) -> torch.Tensor:
    """Equal where `result` has the same bits, or both are NaN."""
    if not result.is_floating_point():
        return result
    values = result.detach().to(torch.float32).nan_to_num(nan=0.125, posinf=torch.inf, neginf=-torch.inf)
    return torch.stack((values.view(torch.int32), result.isnan().to(torch.int32)))


def _shown(outcome: torch.Tensor | Exception) -> str:
    if isinstance(outcome, Exception):
        return f"{type(outcome).__name__}: {outcome}"
    return f"{outcome.dtype} {list(outcome.shape)}"


def _shape(choices: Choices) -> tuple[int, ...]:
    return tuple(choices.one_of(SIZES) for _ in range(1 + choices.below(3))) if choices.below(8) else (2, 1, 3, 1, 9)


def _codes(choices: Choices, shape: tuple[int, ...], bits: int) -> torch.Tensor:
    return torch.from_numpy(choices.generator().integers(0, 1 << bits, shape, dtype=np.uint8))


def _words(choices: Choices, shape: tuple[int, ...], bits: int) -> torch.Tensor:
    """Words of codes ``shape``, with garbage behind the last code."""
    *leading, columns = shape
    generator = choices.generator()
    return torch.from_numpy(generator.integers(-(2**63), 2**63 - 1, (*leading, -(-columns * bits // 64))))


def _floats(choices: Choices, shape: tuple[int, ...], dtype: torch.dtype, hostile: bool = False) -> torch.Tensor:
    generator = choices.generator()
    values = generator.normal(size=shape) * choices.one_of((1.0, 1e-3, 300.0))
    if hostile and values.size:
        for _ in range(1 + choices.below(3)):
            values.flat[int(generator.integers(values.size))] = choices.one_of(_HOSTILE_FLOATS)
    return torch.from_numpy(values).to(dtype)


def _spoiled(choices: Choices, arguments: Arguments) -> Arguments:
    """The arguments with up to two of them replaced; two of three times none, or the layout of tensors only."""
    spoiled = {
        name: _laid_out(choices, value) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    for _ in range(max(0, choices.below(6) - 3)):
        name = choices.one_of(tuple(spoiled))
        value = spoiled[name]
        if isinstance(value, torch.Tensor):
            spoiled[name] = _spoiled_tensor(choices, value)
        else:
            spoiled[name] = choices.one_of(_HOSTILE_NUMBERS)
    return spoiled


def _laid_out(choices: Choices, tensor: torch.Tensor) -> torch.Tensor:
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


def _spoiled_tensor(choices: Choices, tensor: torch.Tensor, one_in: int = 1) -> Any:
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
        hostile.view(-1)[choices.below(256) % tensor.numel()] = choices.one_of((255, 16, 3, 127))
    return hostile


def _prepared(weight: Arguments) -> torch.Tensor | None:
    backend = bittensor.get_backend("cpp")
    return backend.prepare(bittensor.QuantizedWeight(**weight)).tensors[0]


def _oracle(weight: Arguments) -> oracle_linear.Weight:
    """The suite's view of a weight."""
    with bittensor.use_backend("reference"):
        quantized = bittensor.QuantizedWeight(**weight)
        codes = quantized.codes().numpy()
    scales, offsets = (
        None if each is None else each.to(torch.float32).resolve_neg().numpy()
        for each in (quantized.scales, quantized.offsets)
    )
    assert scales is not None
    zeros = None if quantized.zeros is None else quantized.zeros.numpy()
    return oracle_linear.Weight(codes, scales, zeros, offsets, quantized.bits, quantized.group_size)


def _rows(tensor: torch.Tensor) -> oracle_linear.Floats:
    values: oracle_linear.Floats = tensor.detach().to(torch.float32).resolve_neg().contiguous().numpy()
    return values.reshape(int(np.prod(values.shape[:-1])), values.shape[-1])


def _float_name(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")
