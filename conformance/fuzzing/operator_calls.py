"""Calls of the operations with arguments that a careless or hostile caller might bring.

Arguments start out valid, and a few of them are spoiled. Whatever comes in, the C++ backend must do what the reference
does: return the same result, or refuse with the same kind of error.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import torch
from bittensor_conformance import oracle_linear
from bittensor_conformance.targets import expand

import bittensor

from .choices import Choices
from .operands import (
    SIZES,
    Arguments,
    damaged,
    prepared_of_weight,
    some_codes,
    some_floats,
    some_shape,
    some_words,
    spoiled,
    spoiled_tensor,
    weight_arguments,
)

_BIAS_DTYPES = (torch.float32, torch.float16)

REFUSALS = (TypeError, ValueError, bittensor.UnsupportedOperationError)
"""What a public function may raise, whatever it is given."""


def run(data: bytes) -> None:
    """Make the call that `data` describes on a variant of the C++ backend and on the reference, and compare."""
    choices = Choices(data)
    target = choices.one_of(variants())
    choices.one_of(_CALLS)(choices, target)


@cache
def variants() -> list[str]:
    """The variants of the C++ backend that run here."""
    return expand(["cpp"])


def _pack(choices: Choices, target: str) -> None:
    bits = choices.one_of((4, 2, 8, 1))
    arguments = spoiled(choices, {"weight": some_codes(choices, some_shape(choices), bits), "bits": bits})
    compare(target, lambda: bittensor.pack_weights(**arguments))


def _unpack(choices: Choices, target: str) -> None:
    bits = choices.one_of((4, 2, 8, 1))
    *leading, columns = some_shape(choices)
    words = some_words(choices, (*leading, columns), bits)
    if choices.below(2):
        arguments = spoiled(choices, {"packed": words, "in_features": columns, "bits": bits})
        compare(target, lambda: bittensor.unpack_weights(**arguments))
    else:
        rows = int(np.prod(leading))
        arguments = spoiled(choices, {"packed": words, "rows": rows, "cols": columns, "bits": bits})
        compare(target, lambda: bittensor.unpack_tensor(**arguments))


def _packed_matmul(choices: Choices, target: str) -> None:
    bits = choices.one_of((4, 2, 8, 1))
    *leading, k = some_shape(choices)
    n = choices.one_of(SIZES)
    is_packed = choices.below(2) == 1
    scale = choices.below(5)
    valid: Arguments = {
        "x": some_words(choices, (*leading, k), bits) if is_packed else some_codes(choices, (*leading, k), bits),
        "weight": some_words(choices, (n, k), bits),
        "bias": choices.one_of((None, torch.arange(n, dtype=torch.int32) - 3, torch.arange(n, dtype=torch.uint8))),
        "bits": bits,
        "in_features": k if is_packed or choices.below(2) else None,
        "x_zero": choices.below(1 << bits),
        "weight_zero": choices.below(1 << bits),
        "scale": (None, 0.25, torch.tensor(-0.5), torch.tensor([0.01]), torch.linspace(-1, 1, n))[scale],
        "out_zero": choices.below(1 << bits) if scale else 0,
        "out_dtype": torch.int32 if not scale and choices.below(2) else None,
    }
    arguments = spoiled(choices, valid)
    compare(target, lambda: bittensor.packed_matmul(**arguments))


def _prepare_and_restore(choices: Choices, target: str) -> None:
    arguments = spoiled(choices, weight_arguments(choices))

    def call() -> torch.Tensor:
        backend = bittensor.current_backend()
        weight = bittensor.QuantizedWeight(**arguments)
        restored = backend.restore(backend.prepare(weight))
        if not restored.equal(weight):
            raise AssertionError("the restored weight is another")
        return restored.dequantize()

    compare(target, call)


def _linear(choices: Choices, target: str) -> None:
    weight = weight_arguments(choices)
    n, k = weight["shape"]
    *leading, _ = some_shape(choices)
    dtype = choices.one_of((torch.float32, torch.float16, torch.bfloat16))
    arguments: Arguments = {
        "x": some_floats(choices, (*leading, k), dtype, choices.below(4) == 1),
        "bias": some_floats(choices, (n,), choices.one_of((torch.float32, torch.float16)))
        if choices.below(2)
        else None,
        "activation_mode": choices.one_of(("int8", "float")),
        "epilogue": choices.one_of((None, "relu", "gelu", "silu")),
    }
    is_weight_spoiled = choices.below(4) == 1
    weight = spoiled(choices, weight) if is_weight_spoiled else weight
    arguments = arguments if is_weight_spoiled else spoiled(choices, arguments)
    mode = arguments.get("activation_mode")

    def call() -> torch.Tensor:
        return bittensor.linear(weight=bittensor.QuantizedWeight(**weight), **arguments)

    def allowed() -> oracle_linear.Interval:
        x, bias = (None if each is None else _rows(each) for each in (arguments["x"], arguments["bias"]))
        assert x is not None
        epilogue, name = arguments["epilogue"], _float_name(arguments["x"].dtype)
        return oracle_linear.linear_float(x, _oracle(weight), None if bias is None else bias[0], epilogue, name)

    compare(target, call, allowed if mode == "float" else None)


def _linear_input_grad(choices: Choices, target: str) -> None:
    weight = weight_arguments(choices)
    *leading, _ = some_shape(choices)
    dtype = choices.one_of((torch.float32, torch.float16, torch.bfloat16))
    dy = some_floats(choices, (*leading, weight["shape"][0]), dtype, choices.below(4) == 1)

    def call() -> torch.Tensor:
        backend = bittensor.current_backend()
        return backend.linear_input_grad(dy, backend.prepare(bittensor.QuantizedWeight(**weight)))

    compare(target, call, lambda: oracle_linear.linear_input_grad(_rows(dy), _oracle(weight), _float_name(dy.dtype)))


def _foreign_operands(choices: Choices, target: str) -> None:
    """The operators themselves, which a program may call with anything: they refuse, or return a tensor."""
    operators = torch.ops.bittensor_cpp
    weight = weight_arguments(choices)
    blob = damaged(choices, prepared_of_weight(weight))
    n, k = weight["shape"]
    rows, columns = choices.one_of(SIZES), choices.one_of((k, n, *SIZES))
    x = spoiled_tensor(choices, torch.randn(rows, columns), one_in=8)
    isa = choices.one_of((-1, -1, 0, 1, 2, 3, 4, 5, -2))
    calls: tuple[Callable[[], Any], ...] = (
        lambda: operators.linear(x, blob, choices.one_of((n, columns, -1, 2**62)), None, choices.below(2) == 1,
                                 choices.below(6) - 1, isa),
        lambda: operators.linear_forward(x, blob, n, torch.randn(choices.one_of((n, *SIZES))), choices.below(2) == 1),
        lambda: operators.linear_input_grad(x, blob, choices.one_of((k, *SIZES)), isa),
        lambda: operators.restore(blob, n, k, weight["bits"], choices.one_of((weight["group_size"] or k, 8, 0, -8)),
                                  choices.below(4), weight["scales"].dtype, isa),
        lambda: operators.prepare(spoiled_tensor(choices, weight["words"]), weight["scales"], weight["zeros"],
                                  weight["offsets"], choices.one_of((k, 0, -1, 2**62, 2**63 - 1)), weight["bits"],
                                  choices.one_of((weight["group_size"] or k, 8, 0, -8, 2**62)), isa),
        lambda: operators.unpack(spoiled_tensor(choices, weight["words"]), choices.one_of((k, -1, 2**63 - 1)),
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


def compare(
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
