"""Rows of a group-quantized weight."""

from __future__ import annotations

import torch

import bittensor

from .backends import BACKENDS, Timing, use
from .weights import random_weight

TABLE, COLUMNS = 1024, 1024


class Embedding(Timing):
    params = (BACKENDS, [1, 128])
    param_names = ("backend", "rows")

    def setup(self, backend: str, rows: int) -> None:
        use(backend, "embedding", 4)
        torch.manual_seed(0)
        weight = random_weight(TABLE, COLUMNS, 64)
        self.backend = bittensor.current_backend()
        self.prepared = self.backend.prepare(weight)
        self.indices = torch.randint(TABLE, (rows,))

    def time_embedding(self, backend: str, rows: int) -> None:
        self.backend.embedding(self.indices, self.prepared, torch.float32)
