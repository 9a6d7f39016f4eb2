"""Where a tensor's elements lie: every stride pattern a caller can hand to a backend.

A view is cut out of a parent buffer by hand. The rest of the parent is poison: a kernel that takes the data as if they
were contiguous reads garbage, and a kernel that writes to its input is caught by a comparison of the whole parent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Array: TypeAlias = npt.NDArray[Any]
Strides: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Placed:
    """A tensor in memory: the tensor, its values as a contiguous array, and the parent it was cut from."""

    tensor: torch.Tensor
    values: Array
    parent: Array
    before: bytes

    def is_unmodified(self) -> bool:
        """True if no byte of the parent has changed, gaps included."""
        return self.parent.tobytes() == self.before


def _contiguous(shape: tuple[int, ...]) -> Strides:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def _every_second(shape: tuple[int, ...]) -> Strides:
    return tuple(2 * stride for stride in _contiguous(shape))


def _padded_rows(shape: tuple[int, ...]) -> Strides:
    return (*(_contiguous((*shape[:-1], shape[-1] + 5)))[:-1], 1) if shape else ()


def _transposed(shape: tuple[int, ...]) -> Strides:
    if len(shape) < 2:
        return _every_second(shape)
    strides = _contiguous((*shape[:-2], shape[-1], shape[-2]))
    return (*strides[:-2], 1, strides[-2])


def _reversed_dimensions(shape: tuple[int, ...]) -> Strides:
    return tuple(reversed(_contiguous(tuple(reversed(shape)))))


def _expanded_rows(shape: tuple[int, ...]) -> Strides:
    return (0, *_contiguous(shape)[1:]) if shape else ()


def _expanded_middle(shape: tuple[int, ...]) -> Strides:
    if len(shape) < 3:
        return _expanded_rows(shape)
    strides = _contiguous((*shape[:-2], 1, shape[-1]))
    return (*strides[:-2], 0, strides[-1])


def _expanded_columns(shape: tuple[int, ...]) -> Strides:
    return (*_contiguous((*shape[:-1], 1))[:-1], 0) if shape else ()


def _sliding(shape: tuple[int, ...]) -> Strides:
    return (1,) * len(shape)


LAYOUTS: dict[str, Callable[[tuple[int, ...]], Strides]] = {
    "contiguous": _contiguous,
    "offset": _contiguous,
    "every_second": _every_second,
    "padded_rows": _padded_rows,
    "transposed": _transposed,
    "reversed_dimensions": _reversed_dimensions,
    "expanded_rows": _expanded_rows,
    "expanded_middle": _expanded_middle,
    "expanded_columns": _expanded_columns,
    "sliding": _sliding,
}
"""Strides in elements, by the name of the layout."""

OVERLAPPING = frozenset({"expanded_rows", "expanded_middle", "expanded_columns", "sliding"})
"""Layouts in which elements share memory, so that the values that are asked for cannot all be had."""

_OFFSET = 3


def place(values: Array, layout: str = "contiguous") -> Placed:
    """A tensor that holds `values` in the named layout. Where elements overlap, the last one written counts."""
    shape = values.shape
    strides = LAYOUTS[layout](shape)
    offset = 0 if layout == "contiguous" else _OFFSET
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if values.size else 0
    parent = _poison(offset + extent + offset, values.dtype)
    bytes_per = values.itemsize
    view = np.lib.stride_tricks.as_strided(parent[offset:], shape, tuple(stride * bytes_per for stride in strides))
    view[...] = values
    tensor = torch.from_numpy(parent).as_strided(shape, strides, offset)
    return Placed(tensor, np.ascontiguousarray(view).reshape(shape), parent, parent.tobytes())


def _poison(count: int, dtype: np.dtype[Any]) -> Array:
    """Garbage that is out of range as a code below 8 bits, NaN as a float, and large as an int32."""
    if dtype.kind == "f":
        return np.full(count, np.nan, dtype=dtype)
    garbage = _garbage(dtype)
    return garbage[:count].copy() if count <= garbage.size else np.resize(garbage, count)


@cache
def _garbage(dtype: np.dtype[Any]) -> Array:
    """Enough for most tensors; larger ones repeat it, at a period that is no stride of theirs."""
    rng, period = np.random.default_rng(0), 4099
    if dtype == np.uint8:
        return rng.integers(251, 256, period, dtype=np.uint8)
    information = np.iinfo(dtype)
    return rng.integers(information.min, information.max, period, dtype=dtype)
