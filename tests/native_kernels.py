"""Kernels of the native module that this machine runs, to parametrize tests, and operands in their layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bittensor_cpp import _native

import bittensor

KERNELS = [kernel for kernel in _native.kernel_table() if kernel["supported"]]
BLOCK = 64


def kernels(kind: str) -> Any:
    """Parametrizes a test over the kernels of a kind that this machine can run: all that there are must be there."""
    found = [(kernel["name"], kernel["bits"]) for kernel in KERNELS if kernel["kind"] == kind]
    assert {kernel["isa"] for kernel in KERNELS if kernel["kind"] == kind} == set(_native.supported_isas())
    return pytest.mark.parametrize(("name", "bits"), found, ids=[name for name, _ in found])


def prepared_weight(bits: int) -> tuple[bittensor.QuantizedWeight, np.ndarray]:
    """A weight of 20 rows and 40 columns in groups of 16, and its bytes in the layout of the C++ backend."""
    generator = torch.Generator().manual_seed(bits)
    weight = bittensor.quantize(torch.randn(20, 40, generator=generator), bits, 16, zero="integer")
    return weight, bittensor.get_backend("cpp").prepare(weight).tensors[0].numpy()


def padded_columns(bits: int) -> int:
    """40 columns in groups of 16, 16 and 8, each rounded up to whole blocks."""
    block = 32 // bits
    return sum(-(-columns // block) * block for columns in (16, 16, 8))


def groups_together(bits: int, group_size: int, zero: str = "symmetric") -> int:
    """Groups of a weight that meet one group of activations: docs/numerics.md, section 4."""
    return max(64 // group_size, 1) if bits <= 4 and zero != "float" else 1


def quantized(name: str, bits: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    codes = np.full(padded_columns(bits), 99, dtype=np.int8)
    scales = np.zeros(-(-3 // groups_together(bits, 16)), dtype=np.float32)
    sums = np.zeros(3, dtype=np.int32)
    _native.quantize_row(name, prepared_weight(bits)[1], x, "float32", codes, scales, sums)
    return codes, scales, sums
