"""How near a check came to its bound: the largest observed error, as a part of what the contract allows.

The rounding of a result to its dtype is taken off first: it uses up all that is allowed for it now and then, whatever
is computed, and so would say nothing.
"""

from __future__ import annotations

import numpy as np

from .oracle_linear import Doubles, Interval

_largest: float | None = None


def start() -> None:
    """Forget what was seen: a check begins."""
    global _largest
    _largest = None


def see(errors: Doubles, expected: Interval) -> None:
    """Take note of errors. Results that are not finite have none."""
    global _largest
    ratios = of_bound(errors, expected)
    if ratios.size:
        _largest = max(_largest or 0.0, float(ratios.max()))


def of_bound(errors: Doubles, expected: Interval) -> Doubles:
    """Errors that can be compared, less one rounding to the dtype of the result, as parts of the bound."""
    known = expected.comparable & np.isfinite(errors) & (expected.bound > 0)
    rounding = expected.reach[known] - expected.bound[known]
    ratios: Doubles = np.maximum(errors[known] - rounding, 0) / expected.bound[known]
    return ratios


def largest() -> float | None:
    """The largest error since the start, 1 if it is as large as allowed; None if the check compares with no bound."""
    return _largest
