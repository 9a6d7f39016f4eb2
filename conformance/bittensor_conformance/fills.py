"""What fills a tensor: structure drawn by hypothesis, bulk data from a seeded generator.

A fill is a few small fields, so that a counterexample prints as one line and replays on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from . import oracle

Style = Literal["random", "max", "zero", "ends", "sparse"]
STYLES: tuple[Style, ...] = get_args(Style)
_OCCUPANCY = 0.05
"""Share of the codes of a sparse fill that differ from its base: few enough that accumulators stay near 0."""

BiasStyle = Literal["uint8", "small", "large", "limit", "balance"]
BIAS_STYLES: tuple[BiasStyle, ...] = get_args(BiasStyle)


@dataclass(frozen=True)
class Fill:
    """How codes are filled.

    Attributes:
        style: "random"; "max" and "zero" are constant; "ends" mixes only 0 and the largest code, which is what
            overflows a 16-bit intermediate; "sparse" is `base` almost everywhere, so that results do not saturate.
        seed: of the generator.
        base: the common code of a sparse fill, usually the zero point.
        values: the codes themselves, for tensors small enough to shrink one by one. Overrules the rest.
    """

    style: Style = "random"
    seed: int = 0
    base: int = 0
    values: tuple[int, ...] | None = None

    def codes(self, shape: tuple[int, ...], bits: int) -> oracle.Codes:
        """Codes of this fill as uint8 of `shape`."""
        if self.values is not None:
            return np.array(self.values, dtype=np.uint8).reshape(shape)
        return _codes(self, shape, bits).copy()


@lru_cache(maxsize=256)  # sweeps ask for the same ones again and again
def _codes(fill: Fill, shape: tuple[int, ...], bits: int) -> oracle.Codes:
    top = oracle.largest_code(bits)
    if fill.style == "max":
        return np.full(shape, top, dtype=np.uint8)
    if fill.style == "zero":
        return np.zeros(shape, dtype=np.uint8)
    rng = np.random.default_rng(fill.seed)
    if fill.style == "ends":
        return (rng.integers(0, 2, shape) * top).astype(np.uint8)
    drawn: oracle.Codes = np.asarray(rng.integers(0, top + 1, shape, dtype=np.uint8))
    if fill.style == "sparse":
        drawn = np.where(rng.random(shape) < _OCCUPANCY, drawn, np.uint8(fill.base)).astype(np.uint8)
    return drawn


@dataclass(frozen=True)
class BiasFill:
    """How a bias is filled. int32 throughout, except for style "uint8".

    Attributes:
        style: "uint8" is any byte; "small" are codes; "large" is random up to the overflow limit; "limit" sits on it,
            with either sign; "balance" brings the first row of accumulators near the range of the output, where
            rounding and saturation show, instead of far beyond it.
        seed: of the generator.
        values: the int32 values themselves. Overrules the rest.
    """

    style: BiasStyle = "small"
    seed: int = 0
    values: tuple[int, ...] | None = None

    def integers(self, first_row: oracle.Integers, bits: int, limit: int, reach: int) -> oracle.Integers:
        """The bias as int64 ``[N]``.

        Args:
            first_row: accumulators of the first row, without a bias.
            bits: width of a code.
            limit: largest magnitude that cannot overflow the accumulator.
            reach: accumulators of magnitude up to `reach` are worth aiming at.
        """
        count = first_row.shape[0]
        if self.values is not None:
            return np.array(self.values, dtype=np.int64).reshape(count)
        rng = np.random.default_rng(self.seed)
        drawn: oracle.Integers
        if self.style == "large":
            drawn = rng.integers(-limit, limit, (count,), endpoint=True)
        elif self.style == "limit":
            drawn = np.where(rng.integers(0, 2, (count,)) == 1, limit, -limit)
        elif self.style == "balance":
            drawn = np.clip(rng.integers(-reach, reach, (count,), endpoint=True) - first_row, -limit, limit)
        else:
            top = 255 if self.style == "uint8" else oracle.largest_code(bits)
            drawn = rng.integers(0, min(top, limit), (count,), endpoint=True)
        return drawn.astype(np.int64)
