"""Section 8 of docs/numerics.md in NumPy's float64: what lies between the linears of a transformer."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Doubles: TypeAlias = npt.NDArray[np.float64]


def normalized(x: Doubles, weight: Doubles, epsilon: float) -> Doubles:
    """RMSNorm of rows."""
    mean = (x * x).mean(axis=-1, keepdims=True)
    rows: Doubles = x / np.sqrt(mean + epsilon) * weight
    return rows


def gated(x: Doubles) -> Doubles:
    """SwiGLU of rows that have the gate before what it multiplies."""
    gate, up = np.split(x, 2, axis=-1)
    rows: Doubles = gate / (1 + np.exp(-gate)) * up
    return rows


def turned(x: Doubles, cos: Doubles, sin: Doubles) -> Doubles:
    """Rotary embedding of ``[T, heads, size]`` by the angles of ``[T, size]``."""
    low, high = np.split(x, 2, axis=-1)
    rotated: Doubles = x * cos[:, None] + np.concatenate((-high, low), axis=-1) * sin[:, None]
    return rotated


def attended(query: Doubles, key: Doubles, value: Doubles, visible: npt.NDArray[np.bool_], scale: float) -> Doubles:
    """Attention of ``[T, heads, size]`` over ``[S, key_value_heads, size]``, where `visible` ``[T, S]`` says so.

    Returns:
        ``[T, heads * size]``; 0 for a query that sees nothing.
    """
    tokens, heads, size = query.shape
    mixed = np.zeros((tokens, heads, size))
    for head in range(heads):
        shared = head * key.shape[1] // heads
        for t in range(tokens):
            seen = visible[t]
            if seen.any():
                scores = key[seen, shared] @ query[t, head] * scale
                shares = np.exp(scores - scores.max())
                mixed[t, head] = shares @ value[seen, shared] / shares.sum()
    return mixed.reshape(tokens, -1)
