"""The calls that are made on guarded tensors: which shapes, layouts and sides, for each operation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch

import bittensor

from .cases import Case, MatmulCase, PackCase, ScaleFill, UnpackCase
from .fills import BiasFill
from .guard import SIDES, Side, guarded
from .scripts import Script

_BODY = "same(guarded_call(case, layout, side), case.expected)"
_COLUMNS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130, 255, 257, 513)
_LAYOUTS = ("contiguous", "padded_rows", "every_second", "transposed")
_SIZES = (
    *((m, 17, 33) for m in (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 15, 16, 17)),
    *((3, n, 65) for n in (1, 2, 3, 4, 7, 8, 9, 15, 16, 31, 32, 33, 65)),
    *((m, 5, k) for m, k in product((1, 5), _COLUMNS)),
    *((33, 17, 65), (3, 130, 600), (65, 5, 1030)),
)


def calls(operation: str, bits: int, target: str) -> Iterator[Script]:
    """Every guarded call of an operation, on any target."""
    for case, layout, side in _calls(operation, bits):
        yield _BODY, {"case": case, "layout": layout, "side": side}


def _calls(operation: str, bits: int) -> Iterator[tuple[Case, str, Side]]:
    if operation in ("pack", "unpack"):
        kind = PackCase if operation == "pack" else UnpackCase
        for columns, rows, layout, side in product(_COLUMNS, (1, 3, 9), _LAYOUTS, SIDES):
            yield kind(bits, columns, (rows,)), layout, side
        return
    per_output = ScaleFill("per_output", (0.5, 0.1))
    contiguous = product(_SIZES, _LAYOUTS[:1], SIDES, (False, True))
    strided = product(_SIZES[::4], _LAYOUTS[1:], SIDES, (False, True))
    for (m, n, k), layout, side, packed in (*contiguous, *strided):
        case = MatmulCase(bits, k, n, (m,), bias=BiasFill(), packed_x=packed, x_zero=1, poison=k)
        if layout == "contiguous":
            yield replace(case, accumulator=True), layout, side
            yield replace(case, bias=BiasFill("uint8")), layout, side
        yield replace(case, scale=per_output), layout, side


def guarded_call(case: Case, layout: str, side: Side) -> torch.Tensor:
    """The call of a case on the current backend, with every tensor in `layout`, its `side` at an inaccessible page."""
    if isinstance(case, PackCase):
        return bittensor.pack_weights(guarded(case.placed.values, layout, side), case.bits)
    if isinstance(case, UnpackCase):
        return bittensor.unpack_weights(guarded(case.placed.values, layout, side), case.columns, case.bits)
    tensors = {name: guarded(placed.values, layout, side) for name, placed in case.placed.items()}
    return bittensor.packed_matmul(**{**case.arguments(), **tensors})
