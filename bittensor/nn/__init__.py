"""Modules on packed weights."""

from .packed_linear import PackedLinear
from .quantized_linear import QuantizedLinear

__all__ = ["PackedLinear", "QuantizedLinear"]
