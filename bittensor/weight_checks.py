"""The rules for group-quantized weights: their form and their tensors."""

from __future__ import annotations

import torch

from .checks import check_code_range, check_int, describe, dtype_name
from .codes import words_per_row
from .prepared_weight import GROUP_BITS, GROUP_SIZE_MULTIPLE, SCALE_DTYPES, WeightForm


def check_weight(
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    offsets: torch.Tensor | None,
    shape: object,
    group_size: object,
    bits: object,
) -> WeightForm:
    """Rules of `bittensor.QuantizedWeight`; returns the form."""
    rows, columns = check_shape(shape)
    width = check_group_bits(bits)
    size = check_group_size(group_size, columns)
    grouped = [rows, -(-columns // size)]
    check_tensor("words", words, (torch.int64,), [rows, words_per_row(columns, width)])
    check_tensor("scales", scales, SCALE_DTYPES, grouped, words.device)
    check_finite("scales", scales)
    if zeros is not None and offsets is not None:
        raise ValueError("zeros, offsets: expected at most one of them, got both")
    if zeros is not None:
        check_tensor("zeros", zeros, (torch.uint8,), grouped, words.device)
        check_code_range("zeros", zeros, width)
    if offsets is not None:
        check_tensor("offsets", offsets, (scales.dtype,), grouped, words.device)
        check_finite("offsets", offsets)
    zero = "integer" if zeros is not None else "float" if offsets is not None else "symmetric"
    return WeightForm((rows, columns), width, size, zero, scales.dtype)


def check_group_bits(bits: object) -> int:
    """`bits` as an int, out of `GROUP_BITS`."""
    width = check_int("bits", bits)
    if width not in GROUP_BITS:
        raise ValueError(f"bits: expected one of {GROUP_BITS} for a group-quantized weight, got {width}")
    return width


def check_group_size(group_size: object, columns: int) -> int:
    """`group_size` as a number of columns; None stands for all of them."""
    size = columns if group_size is None else check_int("group_size", group_size)
    if size > columns:
        raise ValueError(
            f"group_size: expected at most the {columns} columns of the weight, got {size}; "
            "None makes every row one group"
        )
    if size != columns and (size < 1 or size % GROUP_SIZE_MULTIPLE):
        raise ValueError(
            f"group_size: expected a multiple of {GROUP_SIZE_MULTIPLE} up to {columns} columns, or None for one group "
            f"a row, got {size}"
        )
    return size


def check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    """`value` is one of `choices`: strings, and None where that is one of them."""
    if not isinstance(value, str) and not (value is None and None in choices):
        raise TypeError(f"{name}: expected one of {choices}, got {type(value).__name__} {value!r}")
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def check_scale_dtype(dtype: object, name: str = "scale_dtype") -> None:
    """`dtype` is one of `SCALE_DTYPES`."""
    if dtype not in SCALE_DTYPES:
        raise TypeError(f"{name}: expected {dtype_names(SCALE_DTYPES)}, got {dtype}")


def check_shape(shape: object) -> tuple[int, int]:
    """`shape` as the two counts N and K."""
    expected = "shape: expected (N, K), two counts of at least 1"
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"{expected}, got {type(shape).__name__} {shape!r}")
    counts = [check_int("shape", count) for count in shape]
    if len(counts) != 2 or min(counts) < 1:
        raise ValueError(f"{expected}, got {shape}")
    return counts[0], counts[1]


def check_tensor(
    name: str,
    value: object,
    dtypes: tuple[torch.dtype, ...],
    shape: list[int],
    device: torch.device | None = None,
) -> None:
    """`value` is a strided tensor of one of `dtypes`, of `shape`, and on `device` if one is given."""
    expected = f"{name}: expected {dtype_names(dtypes)} {shape}"
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    if value.layout is not torch.strided:
        raise TypeError(f"{expected} of strided layout, got {value.layout}")
    if value.dtype not in dtypes:
        raise TypeError(f"{expected}, got {describe(value)}")
    if list(value.shape) != shape:
        raise ValueError(f"{expected}, got {describe(value)}")
    if device is not None and value.device != device:
        raise ValueError(f"{expected} on {device}, where the words are, got one on {value.device}")


def check_finite(name: str, values: torch.Tensor) -> None:
    """No NaN, no infinity; the message names the first index. A tensor on meta has no values."""
    if values.is_meta:
        return
    wrong = ~values.isfinite()
    if bool(wrong.any()):
        index = wrong.nonzero()[0].tolist()
        raise ValueError(f"{name}: expected finite values, got {float(values[tuple(index)])} at index {index}")


def dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    """Dtypes in an error message: ``float16, bfloat16 or float32``."""
    names = [dtype_name(dtype) for dtype in dtypes]
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def check_index_dtype(indices: object) -> torch.Tensor:
    """Rule of numbers of rows: an int64 or int32 tensor, which it returns."""
    if not isinstance(indices, torch.Tensor):
        raise TypeError(f"indices: expected an int64 or int32 tensor, got {type(indices).__name__}")
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"indices: expected int64 or int32, got {describe(indices)}")
    return indices


def check_row_numbers(indices: object, rows: int) -> None:
    """Rule of `bittensor.embedding`: numbers of the `rows` of a weight."""
    numbers = check_index_dtype(indices)
    wrong = (numbers < 0) | (numbers >= rows)
    if bool(wrong.any()):
        raise ValueError(f"indices: expected rows of the weight, 0..{rows - 1}, got {int(numbers[wrong][0])}")
