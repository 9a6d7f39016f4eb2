"""Modules on packed weights."""

from .expert_layers import ExpertLayers
from .fake_quantized_linear import FakeQuantizedLinear
from .feed_forward import FeedForwardDown, FeedForwardUp
from .linear_weight_module import LinearWeightModule
from .lora_linear import LoRALinear
from .packed_linear import PackedLinear
from .quantized_conv2d import QuantizedConv2d
from .quantized_embedding import QuantizedEmbedding
from .quantized_linear import QuantizedLinear
from .scaled_input_linear import ScaledInputLinear
from .weight_module import WeightModule

__all__ = [
    "ExpertLayers",
    "FakeQuantizedLinear",
    "FeedForwardDown",
    "FeedForwardUp",
    "LinearWeightModule",
    "LoRALinear",
    "PackedLinear",
    "QuantizedConv2d",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "ScaledInputLinear",
    "WeightModule",
]
