"""The calls on group-quantized weights that are made on guarded tensors; see guarded_calls.py for those on codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice, product

import numpy as np
import torch

import bittensor
from bittensor import PreparedWeight
from bittensor.backend import Backend

from .compare import check_equal, check_floats
from .embedding_cases import EmbeddingCase
from .float_fills import FloatFill
from .gradient_cases import GradientCase
from .guard import SIDES, Side, guarded
from .linear_cases import TORCH_DTYPES, LinearCase, Mode
from .linear_strategies import FLOAT_DTYPES, scope
from .scripts import Script

_BODIES = {
    operation: f"guarded_linear({operation!r}, case, layout, side)"
    for operation in ("prepare", "linear", "linear_input_grad", "embedding")
}
_SHAPES = (
    *((n, 16, 40) for n in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33)),
    *((17, None, k) for k in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 129)),
    *((5, size, k) for size, k in ((8, 9), (8, 65), (16, 31), (24, 55), (32, 63), (64, 129), (128, 255))),
    *((9, 64, 600), (70, 32, 130)),
)
_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17)


def calls(operation: str, bits: int, target: str) -> Iterator[Script]:
    """Every guarded call of an operation on weights that the target declares."""
    # Only the linear knows modes: of the others every second case.
    step = 1 if operation == "linear" else 2
    for case, layout, side in islice(_calls(bittensor.get_backend(target), bits), None, None, step):
        yield _BODIES[operation], {"case": case, "layout": layout, "side": side}


def _calls(backend: Backend, bits: int) -> Iterator[tuple[LinearCase, str, Side]]:
    within = scope(backend.capabilities)
    modes: list[Mode] = [mode for mode in ("int8", "float") if mode in backend.capabilities.activation_modes]
    kinds = cycle(product(within.zeros, within.scale_dtypes))
    others = cycle(product(_ROWS, FLOAT_DTYPES))
    for (n, size, k), mode, side, layout in product(_SHAPES, modes, SIDES, ("contiguous", "padded_rows")):
        for _ in range(2 if layout == "contiguous" else 1):
            (zero, dtype), (rows, x_dtype) = next(kinds), next(others)
            weight = within.weight(bits, n, k, size, zero, dtype)
            yield LinearCase(weight, (rows,), mode, x_dtype=x_dtype, bias=FloatFill()), layout, side


def guarded_linear(operation: str, case: LinearCase, layout: str, side: Side) -> None:
    """An operation of the current backend, with every tensor in `layout`, its `side` at an inaccessible page.

    Beside the linear: "prepare" prepares the tensors of the weight and restores the prepared ones;
    "linear_input_grad" takes a gradient of the shape and dtype of the result; "embedding" takes as many rows of the
    weight as x has, the last and the first among them. Fails if the result is wrong.
    """
    backend = bittensor.current_backend()
    if operation == "prepare":
        tensors = {each: guard(placed.tensor, layout, side) for each, placed in case.weight.placed.items()}
        restored = backend.restore(_guarded_weight(backend.prepare(case.weight.quantized(**tensors)), side))
        check_equal(restored.words.numpy(), case.weight.placed["words"].values, what="restored words", snippet="")
        return
    prepared = _guarded_weight(backend.prepare(case.weight.quantized()), side)
    if operation == "linear":
        x, bias = (guard(case.inputs[each].tensor, layout, side) for each in ("x", "bias"))
        result = backend.linear(x, prepared, bias, case.mode, None)
        case.check(result, "", exact=backend.capabilities.numerics == "exact")
    elif operation == "embedding":
        rows = EmbeddingCase(case.weight, case.leading, case.x_dtype)
        dtype = TORCH_DTYPES[rows.dtype]
        result = backend.embedding(guard(rows.placed.tensor, layout, side), prepared, dtype)
        shape = (*rows.leading, case.weight.k)
        check_floats(result, rows.expected, shape, dtype, what="embedding", snippet="")
    else:
        gradient = GradientCase(case.weight, case.leading, dtype=case.x_dtype)
        gradient.check(backend.linear_input_grad(guard(gradient.placed.tensor, layout, side), prepared), "")


def _guarded_weight(weight: PreparedWeight, side: Side) -> PreparedWeight:
    return replace(weight, tensors=tuple(guard(each, "contiguous", side) for each in weight.tensors))


def guard(tensor: torch.Tensor, layout: str, side: Side) -> torch.Tensor:
    """A guarded copy of a tensor of any dtype."""
    if tensor.dtype is not torch.bfloat16:
        return guarded(np.ascontiguousarray(tensor.numpy()), layout, side)
    return guarded(np.ascontiguousarray(tensor.view(torch.int16).numpy()), layout, side).view(torch.bfloat16)
