"""Comparison of a result with the oracle's, and messages from which debugging can start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch

_DTYPES: dict[torch.dtype, str] = {torch.uint8: "uint8", torch.int32: "int32", torch.int64: "int64"}


def fail(reason: str, snippet: str) -> NoReturn:
    """Fail a check with what went wrong and a few lines of Python that show it again."""
    indented = "\n".join(f"    {line}" for line in snippet.strip().splitlines())
    raise AssertionError(f"{reason}\nTo reproduce:\n{indented}")


def check_result(
    result: object,
    expected: npt.NDArray[Any],
    *,
    what: str,
    snippet: str,
    inputs: Sequence[torch.Tensor] = (),
) -> None:
    """Compare bit for bit: type, dtype, shape, contiguity, values; and that the result is new memory."""
    if not isinstance(result, torch.Tensor):
        fail(f"{what}: expected a tensor, got {type(result).__name__}", snippet)
    expected_dtype = str(expected.dtype)
    if _DTYPES.get(result.dtype) != expected_dtype:
        fail(f"{what}: expected dtype {expected_dtype}, got {str(result.dtype).removeprefix('torch.')}", snippet)
    if tuple(result.shape) != expected.shape:
        fail(f"{what}: expected shape {list(expected.shape)}, got {list(result.shape)}", snippet)
    if not result.is_contiguous():
        fail(f"{what}: expected a contiguous result, got strides {list(result.stride())}", snippet)
    if result.requires_grad:
        fail(f"{what}: integers carry no gradient, but the result requires one", snippet)
    if result.numel() and any(_shares_memory(result, each) for each in inputs):
        fail(f"{what}: expected new memory, got a view of an input", snippet)
    check_equal(result.numpy(), expected, what=what, snippet=snippet)


def check_equal(actual: npt.NDArray[Any], expected: npt.NDArray[Any], *, what: str, snippet: str) -> None:
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


def _show(value: Any) -> str:
    number = int(value)
    return f"{number} (0x{number % 2**64:016x})" if abs(number) >= 2**31 else str(number)


def _shares_memory(result: torch.Tensor, source: torch.Tensor) -> bool:
    return source.numel() > 0 and result.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
