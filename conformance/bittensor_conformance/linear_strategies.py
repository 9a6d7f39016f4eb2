"""What hypothesis draws for sections 3 to 5 of docs/numerics.md, within what a target declares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from hypothesis import strategies as st

from bittensor.backend import Capabilities
from bittensor.prepared_weight import EPILOGUES, GROUP_SIZE_MULTIPLE

from .fills import STYLES, Fill
from .float_fills import CALM_STYLES, FLOAT_STYLES, FloatFill
from .layouts import LAYOUTS
from .linear_cases import SPECIALS, TORCH_DTYPES, LinearCase, Mode, WeightCase
from .oracle_linear import FloatDtype, ZeroKind, rounded
from .strategies import leading_of

GROUP_SIZES = (8, 16, 24, 32, 48, 64, 128)
OUTPUTS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 18, 31, 32, 33, 47, 48, 49, 63, 64, 65, 97, 130)
ROW_COLUMNS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 300)
"""Columns of a row that is one group."""
FLOAT_DTYPES: tuple[FloatDtype, ...] = ("float32", "float16", "bfloat16")

_SEEDS = st.integers(0, 2**32 - 1)
_POISON = st.none() | _SEEDS
_LAYOUTS = st.sampled_from(tuple(LAYOUTS))
_CONTIGUOUS = st.just("contiguous")
_DTYPES = st.sampled_from(FLOAT_DTYPES)
_CODES = st.builds(Fill, style=st.sampled_from(STYLES), seed=_SEEDS)
_CALM = st.builds(FloatFill, style=st.sampled_from(CALM_STYLES), seed=_SEEDS)
_ALL = _CALM | st.builds(FloatFill, style=st.sampled_from(FLOAT_STYLES), seed=_SEEDS)
_BIASES = st.none() | _CALM
_SPECIALS = st.sampled_from((None, None, None, *SPECIALS))


@dataclass(frozen=True)
class Scope:
    """What a target declares about group-quantized weights, as the suite's own names in a fixed order."""

    zeros: tuple[ZeroKind, ...]
    scale_dtypes: tuple[FloatDtype, ...]
    epilogues: tuple[str | None, ...]
    group_size_multiple: int = GROUP_SIZE_MULTIPLE

    def group_size(self, size: int | None, columns: int) -> int | None:
        """The smallest declared group size from `size` up; None, the whole row, if there is none below `columns`."""
        if size is None:
            return None
        declared = -(-size // self.group_size_multiple) * self.group_size_multiple
        return declared if size == declared or declared < columns else None

    def weight(
        self,
        bits: int,
        n: int,
        k: int,
        group_size: int | None = None,
        zero: ZeroKind | None = None,
        scale_dtype: FloatDtype | None = None,
        **rest: Any,
    ) -> WeightCase:
        """A weight of the kinds that are given, of the first declared ones otherwise; groups of a declared size."""
        zero, scale_dtype = zero or self.zeros[0], scale_dtype or self.scale_dtypes[0]
        return WeightCase(bits, n, k, self.group_size(group_size, k), zero, scale_dtype, **rest)


def scope(capabilities: Capabilities) -> Scope:
    """What cases may be made of on a target."""
    kinds: tuple[ZeroKind, ...] = ("symmetric", "integer", "float")
    return Scope(
        tuple(kind for kind in kinds if kind in capabilities.zero_kinds),
        tuple(name for name in FLOAT_DTYPES if TORCH_DTYPES[name] in capabilities.scale_dtypes),
        tuple(name for name in EPILOGUES if name in capabilities.epilogues),
        capabilities.group_size_multiple,
    )


def epilogue_cases(bits: int, within: Scope, mode: Mode, epilogue: str) -> list[LinearCase]:
    """Rows of zeros, whose y is the bias: values of any magnitude, where the functions bend, and the special ones."""
    biases = [
        *(FloatFill("normal", seed, factor) for seed, factor in enumerate((3.0, 1.0, 0.01))),
        *(FloatFill("positive", seed, factor) for seed, factor in enumerate((-14.0, 6.0, -100.0, 100.0))),
        *(FloatFill(style, 7) for style in ("wide", "subnormal", "huge")),
    ]
    zeros = FloatFill("zero")
    cases = [
        LinearCase(within.weight(bits, 1000, 8), (1,), mode, zeros, dtype, bias=bias, epilogue=epilogue)
        for bias, dtype in product(biases, FLOAT_DTYPES)
    ]
    special = (math.inf, -math.inf, math.nan, 0.0, 87.5, -87.5, 88.0, -88.0, 13.2, -13.2)
    weight = within.weight(bits, len(special), 8)
    for dtype in FLOAT_DTYPES:
        of_dtype = tuple(rounded(np.array(special, np.float32), dtype).tolist())
        cases.append(
            LinearCase(weight, (2,), mode, zeros, bias=FloatFill(values=of_dtype), bias_dtype=dtype, epilogue=epilogue)
        )
        cases += [
            LinearCase(within.weight(bits, 100, 8), (1,), mode, zeros, bias=bias, bias_dtype=dtype, epilogue=epilogue)
            for bias in biases
            if dtype != "float32"
        ]
    return cases


def shapes_of_groups() -> tuple[tuple[int | None, int], ...]:
    """Pairs of group size and K: whole groups, ragged last groups, one group, one group a row."""
    pairs: list[tuple[int | None, int]] = [(None, columns) for columns in ROW_COLUMNS]
    for size in GROUP_SIZES:
        ragged = (size + 1, size + 7, 2 * size - 1, 2 * size + 1, 2 * size + 9, 3 * size + 5, 5 * size - 4)
        pairs += [(size, columns) for columns in (size, 2 * size, 4 * size, *ragged)]
    return tuple(pairs)


_SHAPES = st.sampled_from(shapes_of_groups())
_OUTPUTS = st.sampled_from(OUTPUTS)


@cache
def weight_cases(
    bits: int, within: Scope, *, calm: bool = False, any_layout: bool = False
) -> st.SearchStrategy[WeightCase]:
    """Any weight; `calm` keeps scales and offsets where products stay in the range of float32."""
    floats = _CALM if calm else _ALL

    def build(shape: tuple[int | None, int], **fields: object) -> WeightCase:
        group_size, columns = shape
        size = within.group_size(group_size, columns)
        return WeightCase(bits, k=columns, group_size=size, **fields)  # type: ignore[arg-type]

    return st.builds(
        build,
        shape=_SHAPES,
        n=_OUTPUTS,
        zero=st.sampled_from(within.zeros),
        scale_dtype=st.sampled_from(within.scale_dtypes),
        codes=_CODES,
        scales=floats,
        zeros=_CODES,
        offsets=floats,
        poison=_POISON,
        layout=_LAYOUTS if any_layout else _CONTIGUOUS,
    )


@cache
def _epilogues(declared: tuple[str | None, ...]) -> st.SearchStrategy[str | None]:
    return st.sampled_from(declared)


@st.composite
def linear_cases(
    draw: st.DrawFn, bits: int, within: Scope, mode: Mode, work: int, *, any_layout: bool = False
) -> LinearCase:
    """Linears of up to `work` multiply-adds. Float activations are calm, so that the bound says something."""
    calm = mode == "float"
    weight = draw(weight_cases(bits, within, calm=calm, any_layout=any_layout))
    rows = work // (weight.n * weight.k)
    x_layout, bias_layout = (draw(_LAYOUTS), draw(_LAYOUTS)) if any_layout else ("contiguous", "contiguous")
    return LinearCase(
        weight,
        draw(leading_of(max(1, rows))),
        mode,
        draw(_CALM if calm else _ALL),
        draw(_DTYPES),
        bias=draw(_BIASES),
        bias_dtype=draw(_DTYPES),
        epilogue=draw(_epilogues(within.epilogues)),
        special=draw(_SPECIALS),
        x_layout=x_layout,
        bias_layout=bias_layout,
    )
