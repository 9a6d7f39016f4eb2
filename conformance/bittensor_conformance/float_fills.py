"""What fills a tensor of floats: activations, scales, offsets, biases.

Values are drawn in float32 and rounded to the tensor's dtype, within its finite range: infinities and NaNs come only
where a case asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from .oracle_linear import LARGEST, SMALLEST, FloatDtype, Floats, rounded

FloatStyle = Literal[
    "normal",
    "integers",
    "positive",
    "ties",
    "near_ties",
    "ends",
    "zero",
    "groups",
    "wide",
    "tiny",
    "subnormal",
    "huge",
    "threshold",
]
FLOAT_STYLES: tuple[FloatStyle, ...] = get_args(FloatStyle)
CALM_STYLES: tuple[FloatStyle, ...] = FLOAT_STYLES[: FLOAT_STYLES.index("zero") + 1]
"""Styles whose values are neither so large nor so small that products leave the range of float32."""
SCALE_STYLES: tuple[FloatStyle, ...] = ("normal", "wide", "huge", "subnormal")
"""Styles that show what becomes of scales of any magnitude."""
SMALL_STYLES: tuple[FloatStyle, ...] = ("threshold", "groups", "tiny", "subnormal")
"""Styles with values on both sides of 2^-100."""

_Values: TypeAlias = npt.NDArray[np.floating[Any]]
_Draw = Callable[[np.random.Generator, tuple[int, ...]], _Values]


def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> _Values:
    signs: _Values = rng.integers(0, 2, shape) * 2.0 - 1
    return signs


def _ties(rng: np.random.Generator, shape: tuple[int, ...]) -> _Values:
    """Odd multiples of 1/2 below 127, and 127 often enough to be the largest of most groups: x * inv is a tie."""
    halves = rng.integers(-127, 127, shape) + 0.5
    return np.where(rng.random(shape) < 0.2, 127 * _signs(rng, shape), halves)


def _near_ties(rng: np.random.Generator, shape: tuple[int, ...]) -> _Values:
    """As _ties, within two float32 of the tie on either side, for a largest value that makes 127 / amax inexact."""
    unit = float(np.float32(rng.uniform(1, 2) / 127))
    ties = (_ties(rng, shape) * unit).astype(np.float32)
    moved = (ties.view(np.int32) + rng.integers(-2, 3, shape, dtype=np.int32)).view(np.float32)
    values: _Values = np.clip(moved, -127 * unit, 127 * unit)
    return values


def _groups(rng: np.random.Generator, shape: tuple[int, ...]) -> _Values:
    """Normal values whose magnitude changes every eight columns, from far below 2^-100 to far above 1."""
    columns = shape[-1] if shape else 1
    exponents = rng.choice((-130, -104, -99, -40, -3, 0, 5, 40), (*shape[:-1], -(-columns // 8)))
    spread = np.repeat(exponents, 8, axis=-1)[..., :columns].reshape(shape)
    values: _Values = np.ldexp(rng.standard_normal(shape), spread)
    return values


_DRAWS: dict[FloatStyle, _Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "integers": lambda rng, shape: rng.integers(-9, 10, shape).astype(np.float64),
    "positive": lambda rng, shape: rng.random(shape),
    "ties": _ties,
    "near_ties": _near_ties,
    "ends": _signs,
    "groups": _groups,
    "zero": lambda rng, shape: 0 * _signs(rng, shape),  # of either sign
    "wide": lambda rng, shape: np.ldexp(rng.standard_normal(shape), rng.integers(-125, 125, shape)),
    "tiny": lambda rng, shape: np.ldexp(rng.standard_normal(shape), -95),
    "subnormal": lambda rng, shape: rng.integers(-9, 10, shape).astype(np.float64),  # of the dtype's smallest
    "huge": lambda rng, shape: np.ldexp(_signs(rng, shape), 127) * (1 + rng.random(shape)),
    "threshold": lambda rng, shape: (
        _signs(rng, shape) * rng.choice((1, 1 - 2.0**-24, 1 + 2.0**-23, 0.5), shape) * 2.0**-100
    ),
}


@dataclass(frozen=True)
class FloatFill:
    """How floats are filled.

    Attributes:
        style: "normal"; "integers" are small; "positive" lie in [0, 1); "ties" make codes round from halves, and
            "near_ties" are such that the last bit of 127 / amax decides; "ends" are 1 or -1; "zero" has either sign;
            "groups" changes magnitude every eight columns; "wide" has any exponent; "tiny" lies just above 2^-100 and
            "threshold" around it; "subnormal" and "huge" lie at the ends of the dtype.
        seed: of the generator.
        factor: multiplies all values.
        values: the values themselves. Overrules the rest.
    """

    style: FloatStyle = "normal"
    seed: int = 0
    factor: float = 1.0
    values: tuple[float, ...] | None = None

    def floats(self, shape: tuple[int, ...], dtype: FloatDtype = "float32") -> Floats:
        """Finite values of `dtype`, as float32 of `shape`."""
        if self.values is not None:
            return np.array(self.values, dtype=np.float32).reshape(shape)
        return _floats(self, shape, dtype).copy()


@lru_cache(maxsize=256)  # sweeps ask for the same ones again and again
def _floats(fill: FloatFill, shape: tuple[int, ...], dtype: FloatDtype) -> Floats:
    unit = SMALLEST[dtype] if fill.style == "subnormal" else 1.0
    drawn = _DRAWS[fill.style](np.random.default_rng(fill.seed), shape) * (fill.factor * unit)
    largest = LARGEST[dtype]
    values: Floats = np.clip(drawn, -largest, largest).astype(np.float32)
    return rounded(values, dtype)
