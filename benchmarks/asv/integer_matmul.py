"""The integer product of packed codes."""

from __future__ import annotations

import torch

import bittensor

from .backends import BACKENDS, FAST_BACKENDS, Timing, use


class PackedMatmul(Timing):
    params = (FAST_BACKENDS, [1, 8, 128], [384, 4096], [4])
    param_names = ("backend", "m", "n_and_k", "bits")

    def setup(self, backend: str, m: int, n_and_k: int, bits: int) -> None:
        use(backend, "packed_matmul", bits, steps=m * n_and_k**2)
        torch.manual_seed(0)
        self.x = torch.randint(0, 2**bits, (m, n_and_k), dtype=torch.uint8)
        self.weight = torch.randint(-(2**63), 2**63 - 1, (n_and_k, n_and_k * bits // 64))  # codes, 64 bits at a time

    def time_packed_matmul(self, backend: str, m: int, n_and_k: int, bits: int) -> None:
        bittensor.packed_matmul(self.x, self.weight, bits=bits)


class PackedMatmulWidths(PackedMatmul):
    params = (FAST_BACKENDS, [8], [1024], [1, 2, 8])


class PackedMatmulBackends(PackedMatmul):
    params = (BACKENDS, [8], [512], [4])


class PeakMemory:
    """Memory of a process that multiplies: a product that unpacks its weight, or keeps large buffers, shows here."""

    params = (["cpp", "reference"],)
    param_names = ("backend",)

    def setup(self, backend: str) -> None:
        use(backend, "packed_matmul", 4)
        self.x = torch.zeros(2, 8192, dtype=torch.uint8)
        self.weight = torch.zeros(8192, 8192 // 16, dtype=torch.int64)

    def peakmem_packed_matmul(self, backend: str) -> None:
        bittensor.packed_matmul(self.x, self.weight)
