"""Modules on packed weights."""

from .packed_linear import PackedLinear
from .quantized_linear import QuantizedLinear
from .scaled_input_linear import ScaledInputLinear

__all__ = ["PackedLinear", "QuantizedLinear", "ScaledInputLinear"]
