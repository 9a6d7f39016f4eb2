"""Sizes that chapters 2, 4 and 5 share."""

from __future__ import annotations

from itertools import product

ROUND_AND_LARGE = (
    *((m, n, *depth) for m, n, depth in product((16, 32, 64), (16, 64), ((64, 32), (256, 64)))),
    (256, 3, 512, 256),
    (3, 256, 1024, 128),
    (1, 512, 4096, 128),
    (70_000, 2, 9, 8),
    (1, 70_000, 9, 8),
    (3, 70_000, 9, 8),
)
"""M, N, K and the group size: multiples of whatever a backend cuts into, and more rows or outputs than 2**16."""
