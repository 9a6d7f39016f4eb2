"""Modules on packed weights."""

from .fake_quantized_linear import FakeQuantizedLinear
from .lora_linear import LoRALinear
from .packed_linear import PackedLinear
from .quantized_linear import QuantizedLinear

__all__ = ["FakeQuantizedLinear", "LoRALinear", "PackedLinear", "QuantizedLinear"]
