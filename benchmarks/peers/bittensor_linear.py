"""`bittensor.linear` itself, as it is called by users: float32 activations, weights with float16 scales."""

from __future__ import annotations

from collections.abc import Callable

import torch

import bittensor

from .peer import Peer, Weight


class BittensorLinear(Peer):
    weight_bits = 4
    packages = ("packed-bittensor",)

    def __init__(self, mode: str, tolerance: float) -> None:
        self.name = f"bittensor {mode}"
        self.activations = mode
        self.tolerance = tolerance

    def build(self, weight: Weight, x: torch.Tensor, threads: int) -> Callable[[], object]:
        quantized = bittensor.QuantizedWeight.from_codes(
            weight.codes, weight.scales.half(), group_size=weight.group_size, bits=4
        )
        mode = self.activations
        return lambda: bittensor.linear(x, quantized, activation_mode=mode)


PEERS = [BittensorLinear("int8", 0.02), BittensorLinear("float", 1e-5)]
