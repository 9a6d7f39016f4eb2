"""A backend that only prepares, in a layout of its own: weights come from it that no target may compute with."""

from __future__ import annotations

import torch

from bittensor import PreparedWeight, QuantizedWeight
from bittensor.backend import PROTOCOL_VERSION, Backend, Capabilities


class Elsewhere(Backend):
    """Its layout is the canonical tensors, inverted or negated."""

    name = "elsewhere"
    protocol_version = PROTOCOL_VERSION
    capabilities = Capabilities(operations=frozenset({"prepare", "restore", "linear"}), layout="elsewhere/1")

    def prepare(self, weight: QuantizedWeight) -> PreparedWeight:
        canonical = weight.canonical()
        return PreparedWeight(canonical.form, "elsewhere/1", tuple(map(_turned, canonical.tensors)))

    def restore(self, weight: PreparedWeight) -> QuantizedWeight:
        tensors = tuple(map(_turned, weight.tensors))
        return QuantizedWeight.from_canonical(PreparedWeight(weight.form, "canonical", tensors))


def _turned(tensor: torch.Tensor) -> torch.Tensor:
    return -tensor if tensor.is_floating_point() else ~tensor
