"""Tensors beside memory that may not be touched: a read or write of one byte too many ends the process.

The data lie against an inaccessible page, with either their last byte before one or their first byte after one, and are
themselves write-protected. Use in a process of its own (isolation.py).
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from .layouts import LAYOUTS

Side = Literal["end", "start"]
SIDES: tuple[Side, ...] = ("end", "start")
"""Which end of the data touches the inaccessible page."""

_NO_ACCESS, _READ_ONLY = 0, mmap.PROT_READ
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded(values: npt.NDArray[Any], layout: str, side: Side) -> torch.Tensor:
    """A read-only tensor of `values` in the named layout, with nothing but an inaccessible page beyond its `side`.

    Gaps between the elements are accessible and hold poison; elements may not overlap.
    """
    strides = LAYOUTS[layout](values.shape)
    dtype = torch.from_numpy(values.reshape(-1)[:0]).dtype
    if not values.size:
        return torch.empty(values.shape, dtype=dtype)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
    size = extent * values.itemsize
    page = mmap.PAGESIZE
    data_pages = -(-size // page)
    memory = mmap.mmap(-1, (data_pages + 2) * page)
    start = page + (data_pages * page - size if side == "end" else 0)
    flat = np.frombuffer(memory, dtype=values.dtype, count=extent, offset=start)
    flat.view(np.uint8)[:] = 0xFB
    view = np.lib.stride_tricks.as_strided(flat, values.shape, tuple(each * values.itemsize for each in strides))
    view[...] = values
    tensor = torch.frombuffer(memory, dtype=dtype, count=extent, offset=start)
    base = flat.ctypes.data - start
    _protect(base, page, _NO_ACCESS)
    _protect(base + page, data_pages * page, _READ_ONLY)
    _protect(base + (data_pages + 1) * page, page, _NO_ACCESS)
    return tensor.as_strided(values.shape, strides)


def _protect(address: int, size: int, protection: int) -> None:
    if _libc.mprotect(address, size, protection) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"mprotect of {size} bytes failed: errno {error}")
