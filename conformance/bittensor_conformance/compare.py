"""Comparison of a result with the oracle's, and messages from which debugging can start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from . import observed
from .oracle_linear import Floats, Interval

_DTYPES: dict[str, torch.dtype] = {"uint8": torch.uint8, "int32": torch.int32, "int64": torch.int64}


def fail(reason: str, snippet: object) -> NoReturn:
    """Fail a check with what went wrong and lines of Python that show it again, unless the caller adds those.

    `snippet` is these lines, or what `str` makes them of: here as in all of this file.
    """
    lines = str(snippet).strip().splitlines()
    if not lines:
        raise AssertionError(reason)
    indented = "\n".join(f"    {line}" for line in lines)
    raise AssertionError(f"{reason}\nTo reproduce:\n{indented}")


def check_result(
    result: object,
    expected: npt.NDArray[Any],
    *,
    what: str,
    snippet: object,
    inputs: Sequence[torch.Tensor] = (),
) -> None:
    """Compare bit for bit: type, dtype, shape, contiguity, values; and that the result is new memory."""
    checked = _check_form(result, expected.shape, _DTYPES[str(expected.dtype)], what, snippet, inputs)
    check_equal(checked.numpy(), expected, what=what, snippet=snippet)


def check_floats(
    result: object,
    expected: Floats,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    what: str,
    snippet: object,
    inputs: Sequence[torch.Tensor] = (),
) -> None:
    """Compare floats bit for bit, with the sign of zero. Every NaN is the same NaN; `expected` has two dimensions."""
    checked = _check_form(result, shape, dtype, what, snippet, inputs)
    actual = as_rows(checked, expected.shape[1])
    same = (actual.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(actual) & np.isnan(expected))
    if not same.all():
        _fail_at(~same, actual, lambda at: _show_float(expected[at]), what, snippet)


def check_within(
    result: object,
    expected: Interval,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    what: str,
    snippet: object,
    inputs: Sequence[torch.Tensor] = (),
) -> None:
    """Compare floats with the interval in which they must lie."""
    checked = _check_form(result, shape, dtype, what, snippet, inputs)
    actual = as_rows(checked, expected.center.shape[1])
    with np.errstate(invalid="ignore"):
        errors = np.abs(actual.astype(np.float64) - expected.center)
        inside = errors <= expected.reach
    observed.see(errors, expected)
    wrong = ~inside & expected.comparable
    if wrong.any():
        _fail_at(wrong, actual, lambda at: f"{expected.center[at]!r} +- {expected.reach[at]:.3g}", what, snippet)


def same(actual: Any, expected: Any, within: float | npt.NDArray[np.float64] = 0.0) -> None:
    """Fail unless two results are the same: type, dtype, shape and every bit, but a NaN is a NaN.

    With `within`, floats may differ by so much; where `expected` is not finite or the bound is NaN, all is allowed.
    """
    allowed = torch.as_tensor(within, dtype=torch.float64)
    left, right = (
        each.detach() if isinstance(each, torch.Tensor) else torch.from_numpy(each) for each in (actual, expected)
    )
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        raise AssertionError(f"expected {right.dtype} {list(right.shape)}, got {left.dtype} {list(left.shape)}")
    if not left.is_floating_point():
        wrong = left != right
    elif allowed.any():
        a, b = left.double(), right.double()
        wrong = ~((a - b).abs() <= allowed) & b.isfinite() & ~allowed.isnan()
    else:
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
        wrong = (left.contiguous().view(bits) != right.contiguous().view(bits)) & ~(left.isnan() & right.isnan())
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        got, wanted = left[at].item(), right[at].item()
        show = _show_float if left.is_floating_point() else _show
        reach = f" +- {allowed.expand(wrong.shape)[at]:.3g}" if allowed.any() else ""
        raise AssertionError(
            f"at {list(at)} expected {show(wanted)}{reach}, got {show(got)}; "
            f"{int(wrong.sum())} of {wrong.numel()} values differ"
        )


def as_rows(result: torch.Tensor, columns: int) -> Floats:
    """A result of any float dtype and leading dimensions as float32 rows."""
    rows: Floats = result.detach().to(torch.float32).reshape(-1, columns).numpy()
    return rows


def _check_form(
    result: object,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    what: str,
    snippet: object,
    inputs: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Type, dtype, shape, contiguity; and that the result is new memory that carries no gradient."""
    if not isinstance(result, torch.Tensor):
        fail(f"{what}: expected a tensor, got {type(result).__name__}", snippet)
    if result.dtype is not dtype:
        wanted, got = (str(each).removeprefix("torch.") for each in (dtype, result.dtype))
        fail(f"{what}: expected dtype {wanted}, got {got}", snippet)
    if tuple(result.shape) != shape:
        fail(f"{what}: expected shape {list(shape)}, got {list(result.shape)}", snippet)
    if not result.is_contiguous():
        fail(f"{what}: expected a contiguous result, got strides {list(result.stride())}", snippet)
    if result.requires_grad:
        fail(f"{what}: no input requires a gradient, but the result does", snippet)
    if result.numel() and any(_shares_memory(result, each) for each in inputs):
        fail(f"{what}: expected new memory, got a view of an input", snippet)
    return result


def check_equal(actual: npt.NDArray[Any], expected: npt.NDArray[Any], *, what: str, snippet: object) -> None:
    """Compare the values of two arrays of one shape; the message names the first difference and counts the rest."""
    different = actual != expected
    if not different.any():
        return
    index = tuple(int(i) for i in np.argwhere(different)[0]) if actual.ndim else ()
    fail(
        f"{what}: at index {list(index)} expected {_show(expected[index])}, got {_show(actual[index])}; "
        f"{int(different.sum())} of {actual.size} values differ",
        snippet,
    )


def _fail_at(
    wrong: npt.NDArray[np.bool_], actual: Floats, expected: Callable[[tuple[int, ...]], str], what: str, snippet: object
) -> NoReturn:
    """Fail with the first wrong value, in row and column, and the count of the rest."""
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    fail(
        f"{what}: at row {at[0]}, column {at[1]} expected {expected(at)}, got {_show_float(actual[at])}; "
        f"{int(wrong.sum())} of {actual.size} values differ",
        snippet,
    )


def _show_float(value: Any) -> str:
    return f"{float(value)!r} ({float(value).hex()})"


def _show(value: Any) -> str:
    number = int(value)
    return f"{number} (0x{number % 2**64:016x})" if abs(number) >= 2**31 else str(number)


def _shares_memory(result: torch.Tensor, source: torch.Tensor) -> bool:
    return source.numel() > 0 and result.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
