"""What hypothesis draws: the structure of a case and a seed. Never the bulk of the data, and nothing is filtered out.

Sizes come from the neighbourhood of everything a kernel rounds to: words, vectors, tiles, blocks. They are listed from
simple to odd because hypothesis shrinks towards the front of a list.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Literal

from hypothesis import strategies as st

from . import oracle
from .cases import MatmulCase, PackCase, ScaleFill, ScaleForm, UnpackCase
from .fills import BIAS_STYLES, STYLES, BiasFill, Fill
from .layouts import LAYOUTS

Epilogue = Literal["accumulator", "saturated", "scaled"]

COLUMNS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130, 255, 256, 257, 300, 513, 1000, 0)
OUTPUTS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300, 0)
ROWS = (*range(1, 18), 33, 65, 0)
LEADING: tuple[tuple[int, ...], ...] = (
    *((rows,) for rows in ROWS),
    *((), (1, 1), (2, 3), (3, 1), (1, 4), (2, 0), (0, 2), (2, 1, 3), (1, 3, 2), (3, 2, 5), (0, 1, 2), (2, 8, 8)),
    *((2, 1, 1, 2), (1, 2, 1, 2, 1)),
)
SCALES = (
    *(1.0, 0.5, 0.25, 0.125, 0.1, 0.3, 0.7, 1 / 3, 1.5, -0.5, -1.0, -0.1, 2.0**-8, 2.0**-12, 2.0**-16, 2.0**-20),
    *(-(2.0**-10), 1e-3, 1e-4, 0.0, -0.0, 1e-30, -1e-30, 1e-45, 1e30, -1e30, 3.4028234663852886e38),
)
"""Powers of two make ties of every odd accumulator; 0.1 and its like make products that only round to a tie."""

_SHRINKABLE = 12
"""Tensors of up to so many codes may be drawn code by code."""

_SEEDS = st.integers(0, 2**32 - 1)
_LAYOUTS = st.sampled_from(tuple(LAYOUTS))
_POISON = st.none() | _SEEDS
_COLUMNS, _OUTPUTS, _LEADING = st.sampled_from(COLUMNS), st.sampled_from(OUTPUTS), st.sampled_from(LEADING)
_BOOLEANS, _CONTIGUOUS = st.booleans(), st.just("contiguous")
_BIASES = st.none() | st.builds(BiasFill, style=st.sampled_from(BIAS_STYLES), seed=_SEEDS)
_ROW_LIMITS = (1 << 20, 128, 65, 33, 17, 8, 4, 2, 1, 0)


def leading_of(rows: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Leading dimensions of up to about `rows` rows."""
    return _leading_of(next(limit for limit in _ROW_LIMITS if limit <= rows))


@cache
def _leading_of(rows: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sampled_from([leading for leading in LEADING if prod(leading) <= rows])


# Strategies are kept: to make one costs more than to draw from it.


def fills(bits: int, count: int, base: int = 0) -> st.SearchStrategy[Fill]:
    """Fills for a tensor of `count` codes; `base` is its zero point."""
    return _fills(bits, count if count <= _SHRINKABLE else 0, base)


@cache
def _fills(bits: int, count: int, base: int) -> st.SearchStrategy[Fill]:
    seeded = st.builds(Fill, style=st.sampled_from(STYLES), seed=_SEEDS, base=st.just(base))
    if count == 0:
        return seeded
    code = st.integers(0, oracle.largest_code(bits))
    values = st.lists(code, min_size=count, max_size=count).map(tuple)
    return st.builds(Fill, values=values) | seeded


@cache
def codes(bits: int) -> st.SearchStrategy[int]:
    """One code, such as a zero point; the ends and the middle more often than the rest."""
    top = oracle.largest_code(bits)
    return st.sampled_from((0, 1, top, (top + 1) // 2)) | st.integers(0, top)


@st.composite
def pack_cases(draw: st.DrawFn, bits: int) -> PackCase:
    """Any codes in any layout."""
    columns, leading = draw(_COLUMNS), draw(_LEADING)
    return PackCase(bits, columns, leading, draw(fills(bits, columns * prod(leading))), draw(_LAYOUTS))


@st.composite
def unpack_cases(draw: st.DrawFn, bits: int) -> UnpackCase:
    """Any words in any layout, with or without garbage in their unused bits."""
    columns, leading = draw(_COLUMNS), draw(_LEADING)
    fill = draw(fills(bits, columns * prod(leading)))
    return UnpackCase(bits, columns, leading, fill, draw(_LAYOUTS), draw(_POISON))


@st.composite
def matmul_cases(
    draw: st.DrawFn,
    bits: int,
    work: int,
    epilogue: Epilogue,
    *,
    any_layout: bool = False,
) -> MatmulCase:
    """Products of up to `work` multiply-adds that end in the given epilogue."""
    k, n = draw(_COLUMNS), draw(_OUTPUTS)
    leading = draw(leading_of(work // max(1, k * n)))
    x_zero, weight_zero = draw(codes(bits)), draw(codes(bits))
    layouts = _LAYOUTS if any_layout else _CONTIGUOUS
    return MatmulCase(
        bits,
        k,
        n,
        leading,
        x=draw(fills(bits, prod(leading) * k, x_zero)),
        weight=draw(fills(bits, n * k, weight_zero)),
        bias=draw(_BIASES),
        scale=draw(scales(layouts)) if epilogue == "scaled" else None,
        x_zero=x_zero,
        weight_zero=weight_zero,
        out_zero=draw(codes(bits)) if epilogue == "scaled" else 0,
        packed_x=draw(_BOOLEANS),
        accumulator=epilogue == "accumulator",
        poison=draw(_POISON),
        x_layout=draw(layouts),
        weight_layout=draw(layouts),
        bias_layout=draw(layouts),
    )


@cache
def scales(layouts: st.SearchStrategy[str]) -> st.SearchStrategy[ScaleFill]:
    """A scale in each of the forms in which it may be given."""
    forms: tuple[ScaleForm, ...] = ("per_output", "scalar", "one", "float", "lazily_negated")
    values = st.lists(st.sampled_from(SCALES), min_size=1, max_size=4).map(tuple)
    return st.builds(ScaleFill, form=st.sampled_from(forms), values=values, seed=_SEEDS, layout=layouts)
