"""The calls on group-quantized weights that are made on guarded tensors; see guarded_calls.py for those on codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, product

import numpy as np
import torch

import bittensor
from bittensor.backend import Backend

from .cases import snippet
from .compare import check_equal
from .float_fills import FloatFill
from .guard import SIDES, Side, guarded
from .linear_cases import LinearCase, Mode, held_to
from .linear_strategies import FLOAT_DTYPES, scope

_SHAPES = (
    *((n, 16, 40) for n in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33)),
    *((17, None, k) for k in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 129)),
    *((5, size, k) for size, k in ((8, 9), (8, 65), (16, 31), (24, 55), (32, 63), (64, 129), (128, 255))),
)
_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17)


def run(operation: str, bits: int, target: str, announce: Callable[[str], None]) -> int:
    """Make every guarded call of "prepare" or "linear", announcing each before it is made. Returns their number."""
    backend, count = bittensor.get_backend(target), 0
    call = _prepare if operation == "prepare" else _multiply
    # Preparing knows no modes: every other case.
    for case, layout, side in list(_calls(backend, bits))[:: 2 if operation == "prepare" else 1]:
        name = f"{snippet(case, target)}\n# {operation} of tensors in layout {layout!r}, their {side} at a guard page"
        announce(name)
        with bittensor.use_backend(target):
            call(backend, case, layout, side, name)
        count += 1
    return count


def _calls(backend: Backend, bits: int) -> Iterator[tuple[LinearCase, str, Side]]:
    within = scope(backend.capabilities)
    modes: list[Mode] = [mode for mode in ("int8", "float") if mode in backend.capabilities.activation_modes]
    kinds = cycle(product(within.zeros, within.scale_dtypes))
    others = cycle(product(_ROWS, FLOAT_DTYPES))
    for (n, size, k), mode, side, layout in product(_SHAPES, modes, SIDES, ("contiguous", "padded_rows")):
        for _ in range(2 if layout == "contiguous" else 1):
            (zero, dtype), (rows, x_dtype) = next(kinds), next(others)
            weight = within.weight(bits, n, k, size, zero, dtype)
            linear = LinearCase(weight, (rows,), mode, x_dtype=x_dtype, bias=FloatFill())
            yield held_to(backend.capabilities, linear), layout, side


def _prepare(backend: Backend, case: LinearCase, layout: str, side: Side, name: str) -> None:
    """Prepare guarded canonical tensors, and restore the guarded result."""
    tensors = {each: guard(placed.tensor, layout, side) for each, placed in case.weight.placed.items()}
    prepared = backend.prepare(case.weight.quantized(**tensors))
    again = tuple(guard(each, "contiguous", side) for each in prepared.tensors)
    words = backend.restore(replace(prepared, tensors=again)).words
    check_equal(words.numpy(), case.weight.placed["words"].values, what="restored words", snippet=name)


def _multiply(backend: Backend, case: LinearCase, layout: str, side: Side, name: str) -> None:
    """Multiply guarded x with a guarded prepared weight, and add a guarded bias."""
    prepared = backend.prepare(case.weight.quantized())
    again = tuple(guard(each, "contiguous", side) for each in prepared.tensors)
    x, bias = (guard(case.inputs[each].tensor, layout, side) for each in ("x", "bias"))
    case.check(backend.linear(x, replace(prepared, tensors=again), bias, case.mode, None), name)


def guard(tensor: torch.Tensor, layout: str, side: Side) -> torch.Tensor:
    """A guarded copy of a tensor of any dtype."""
    if tensor.dtype is not torch.bfloat16:
        return guarded(np.ascontiguousarray(tensor.numpy()), layout, side)
    return guarded(np.ascontiguousarray(tensor.view(torch.int16).numpy()), layout, side).view(torch.bfloat16)
