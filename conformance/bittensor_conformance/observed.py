"""How near a check came to its bound: the largest observed error, as a part of what the contract allows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_largest: float | None = None


def start() -> None:
    """Forget what was seen: a check begins."""
    global _largest
    _largest = None


def see(errors: npt.NDArray[np.float64], allowed: npt.NDArray[np.float64]) -> None:
    """Take note of errors and of what is allowed for each. Results that are not finite have no error to note."""
    global _largest
    known = np.isfinite(errors) & (allowed > 0)
    if known.any():
        _largest = max(_largest or 0.0, float((errors[known] / allowed[known]).max()))


def largest() -> float | None:
    """The largest error since the start, 1 if it is as large as allowed; None if the check compares with no bound."""
    return _largest
