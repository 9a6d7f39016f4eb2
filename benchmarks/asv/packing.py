"""Packing and unpacking a matrix of codes, and the size of the result."""

from __future__ import annotations

import torch

import bittensor

from .backends import BACKENDS, FAST_BACKENDS, Timing, use

ROWS, COLUMNS = 1024, 4096


class Packing(Timing):
    params = (BACKENDS, [4])
    param_names = ("backend", "bits")

    def setup(self, backend: str, bits: int) -> None:
        use(backend, "pack", bits)
        use(backend, "unpack", bits)
        torch.manual_seed(0)
        self.codes = torch.randint(0, 2**bits, (ROWS, COLUMNS), dtype=torch.uint8)
        self.words = bittensor.pack_weights(self.codes, bits)

    def time_pack(self, backend: str, bits: int) -> None:
        bittensor.pack_weights(self.codes, bits)

    def time_unpack(self, backend: str, bits: int) -> None:
        bittensor.unpack_weights(self.words, COLUMNS, bits)


class PackingWidths(Packing):
    params = (FAST_BACKENDS, [1, 2, 8])


class PackedSize:
    """Bytes of a packed weight whose rows take a whole number of words and one code more."""

    unit = "bytes"
    params = ([1, 2, 4, 8],)
    param_names = ("bits",)

    def track_packed_bytes(self, bits: int) -> int:
        return bittensor.pack_weights(torch.zeros(16, 4097, dtype=torch.uint8), bits).nbytes
