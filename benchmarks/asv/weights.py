"""Weights to compute with, made in less time than quantizing floats takes: no time depends on their values."""

from __future__ import annotations

import torch

import bittensor


def random_weight(n: int, k: int, group_size: int, bits: int = 4) -> bittensor.QuantizedWeight:
    """Any codes and small scales, symmetric; k is a multiple of the codes in a word."""
    words = torch.randint(-(2**63), 2**63 - 1, (n, k * bits // 64))
    scales = torch.rand(n, k // group_size).to(torch.float16) / 100
    return bittensor.QuantizedWeight(words, scales, shape=(n, k), group_size=group_size, bits=bits)
