"""Quantizing float weights, and how large they then are."""

from __future__ import annotations

import torch

import bittensor

from .backends import Timing
from .weights import random_weight

FEATURES = 512


class Quantize(Timing):
    params = (["rtn", "mse", "hqq"], [2, 4, 8])
    param_names = ("method", "bits")
    repeat = (2, 4, 0.4)

    def setup(self, method: str, bits: int) -> None:
        torch.manual_seed(0)
        self.weight = torch.randn(FEATURES, FEATURES)

    def time_quantize(self, method: str, bits: int) -> None:
        bittensor.quantize(self.weight, bits, 128, method=method)


class QuantizedSize:
    """Bytes of the tensors of a weight, and of the layout in which the C++ backend keeps it."""

    unit = "bytes"
    params = ([2, 4, 8], [32, 128])
    param_names = ("bits", "group_size")

    def setup(self, bits: int, group_size: int) -> None:
        self.weight = random_weight(FEATURES, FEATURES, group_size, bits)

    def track_saved_bytes(self, bits: int, group_size: int) -> int:
        return sum(tensor.nbytes for tensor in self.weight.tensors().values())

    def track_prepared_bytes(self, bits: int, group_size: int) -> int:
        prepared = bittensor.get_backend("cpp").prepare(self.weight)
        return sum(tensor.nbytes for tensor in prepared.tensors)
