"""Checkpoints of quantized models, read and written: docs/checkpoints.md."""

from .checkpoint import Checkpoint, Stored, TensorEntry
from .opening import open_checkpoint
from .quantizing import QuantizedTensors, quantize_checkpoint
from .reordered_weight import ReorderedWeight
from .saving import save_checkpoint, save_compressed_tensors

__all__ = [
    "Checkpoint",
    "QuantizedTensors",
    "ReorderedWeight",
    "Stored",
    "TensorEntry",
    "open_checkpoint",
    "quantize_checkpoint",
    "save_checkpoint",
    "save_compressed_tensors",
]
