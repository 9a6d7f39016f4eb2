"""The native module of the C++ backend: whether every kernel of its table has a test, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import test_native_activation_kernels
import test_native_linear_kernels
import test_native_packed_kernels
import test_native_transformer_kernels
from bittensor_cpp import _native
from native_kernels import KERNELS

TESTED = (
    test_native_activation_kernels,
    test_native_linear_kernels,
    test_native_packed_kernels,
    test_native_transformer_kernels,
)
"""The modules that call kernels by name."""


def test_every_kind_of_kernel_is_called_here() -> None:
    called = {name.removeprefix("test_") for each in TESTED for name in vars(each) if name.startswith("test_")}
    assert {kernel["kind"] for kernel in KERNELS} <= called


def test_an_unknown_kernel_and_a_short_buffer_are_refused() -> None:
    codes, words = np.zeros(16, dtype=np.uint8), np.zeros(1, dtype=np.uint64)
    with pytest.raises(ValueError, match="unknown kernel"):
        _native.pack_row("pack_row_b4_abacus", codes, 16, words)
    with pytest.raises(ValueError, match="another kind"):
        _native.pack_row("unpack_row_b4_scalar", codes, 16, words)
    with pytest.raises(ValueError, match="words: expected at least 2 values"):
        _native.pack_row("pack_row_b4_scalar", np.zeros(17, dtype=np.uint8), 17, words)


def test_sizes_whose_product_leaves_64_bits_are_refused() -> None:
    nothing = np.zeros(0, dtype=np.float32)
    with pytest.raises(ValueError, match="sizes: expected a product below"):
        _native.panel_product("panel_product_scalar", 2**32, 2**32, 2**28, nothing, nothing, False, nothing)
    with pytest.raises(ValueError, match="sizes: expected a product below"):
        _native.add_digits("add_digits_scalar", nothing, 2**61, 16)
