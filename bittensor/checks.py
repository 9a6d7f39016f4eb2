"""The rules for arguments, stated once, with messages that say what came and what was expected.

Wrong types and dtypes raise TypeError, wrong values, shapes and devices ValueError, undeclared capabilities
`UnsupportedOperationError`. Public functions apply these rules before they call a backend, unless the backend
declares ``checks_arguments``: then it refuses the same arguments itself, and these rules only word the error.
"""

from __future__ import annotations

import math
import operator

import torch

from .backend import Backend
from .codes import SUPPORTED_BITS, codes_per_word, max_code, words_per_row
from .errors import UnsupportedOperationError

INT32_MAX = 2**31 - 1
REFUSALS = (TypeError, ValueError, RuntimeError)
"""What a backend that checks its arguments may raise; these rules then word the error."""


def check_pack(backend: Backend, codes: object, bits: object, name: str = "codes") -> None:
    """Rules of `Backend.pack`: uint8 ``[..., K]`` on a device the backend serves, every code below 2**bits."""
    width = _check_bits(backend, "pack", bits)
    tensor = _check_tensor(backend, name, codes, torch.uint8, "[..., K]")
    check_code_range(name, tensor, width)


def check_unpack(
    backend: Backend, words: object, columns: object, bits: object, name: str = "words", columns_name: str = "columns"
) -> None:
    """Rules of `Backend.unpack`: int64 ``[..., ceil(columns/E)]`` with E = 64 / bits."""
    width = _check_bits(backend, "unpack", bits)
    tensor = _check_tensor(backend, name, words, torch.int64, "[..., words]")
    count = check_int(columns_name, columns)
    if count < 0:
        raise ValueError(f"{columns_name}: expected a count of at least 0, got {count}")
    _check_word_count(name, tensor, count, width, columns_name)


def check_unpack_rows(words: object, rows: object) -> None:
    """Rules that `unpack_tensor` adds to `check_unpack`: the leading dimensions hold exactly `rows` rows."""
    if isinstance(words, torch.Tensor) and words.dim() > 0:
        count = check_int("rows", rows)
        present = math.prod(words.shape[:-1])  # not numel(), which makes constants of sizes that are traced
        if count != present:
            raise ValueError(
                f"packed: expected {count} rows, as rows={count} says, got {present} from shape {list(words.shape)}"
            )


def check_packed_matmul(
    backend: Backend,
    x: object,
    weight: object,
    bias: object,
    bits: object,
    in_features: object,
    x_zero: object,
    weight_zero: object,
    scale: object,
    out_zero: object,
    out_dtype: object,
) -> None:
    """Rules of `Backend.packed_matmul`; docs/numerics.md, section 2, gives the reasons."""
    width = _check_bits(backend, "packed_matmul", bits)
    packed = _check_tensor(backend, "weight", weight, torch.int64, "packed [N, ceil(K/E)]")
    if packed.dim() != 2:
        raise ValueError(f"weight: expected packed int64 [N, ceil(K/E)], got {describe(packed)}")
    columns = _check_input(backend, x, in_features, width)
    _check_word_count("weight", packed, columns, width, "in_features")
    zeros = [
        _check_code(name, value, width)
        for name, value in (("x_zero", x_zero), ("weight_zero", weight_zero), ("out_zero", out_zero))
    ]
    bias_magnitude = _check_bias(backend, bias, packed.shape[0])
    _check_scale(backend, scale, packed.shape[0])
    if out_dtype is not None and out_dtype is not torch.int32:
        raise TypeError(f"out_dtype: expected None (packed codes) or torch.int32 (the accumulator), got {out_dtype}")
    if out_dtype is torch.int32 and scale is not None:
        raise ValueError("scale: has no meaning with out_dtype=torch.int32, which returns the accumulator unscaled")
    if zeros[2] and scale is None:
        raise ValueError(f"out_zero: has no meaning without scale, got {zeros[2]}; leave it at 0 or give a scale")
    largest = columns * _centered_magnitude(zeros[0], width) * _centered_magnitude(zeros[1], width) + bias_magnitude
    if largest > INT32_MAX:
        raise ValueError(
            f"accumulator: {columns} products of {width}-bit codes plus a bias of up to {bias_magnitude} may reach "
            f"{largest}, beyond int32 ({INT32_MAX}); split in_features or use smaller codes"
        )


def _check_bits(backend: Backend, operation: str, bits: object) -> int:
    width = check_int("bits", bits)
    if width not in SUPPORTED_BITS:
        raise ValueError(f"bits: expected one of {SUPPORTED_BITS}, got {width}")
    check_operation(backend, operation)
    declared = backend.capabilities
    if width not in declared.bits:
        raise UnsupportedOperationError(
            f"backend {backend.name!r} does not declare bits={width}; it declares {sorted(declared.bits)}"
        )
    return width


def check_operation(backend: Backend, operation: str) -> None:
    """The backend declares `operation`."""
    declared = backend.capabilities.operations
    if operation not in declared:
        raise UnsupportedOperationError(
            f"backend {backend.name!r} does not declare the operation {operation!r}; it declares {sorted(declared)}"
        )


def _check_tensor(backend: Backend, name: str, value: object, dtype: torch.dtype, form: str) -> torch.Tensor:
    expected = f"{name}: expected {dtype_name(dtype)} {form}"
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    if value.dtype is not dtype:
        raise TypeError(f"{expected}, got {describe(value)}")
    if value.dim() == 0:
        raise ValueError(f"{expected} with at least one dimension, got a scalar tensor")
    check_place(backend, name, value)
    return value


def check_place(backend: Backend, name: str, tensor: torch.Tensor) -> None:
    """The tensor is strided, and on a device that the backend serves."""
    if tensor.is_nested:
        raise TypeError(f"{name}: expected one tensor, got a nested one")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name}: expected a tensor of strided layout, got {tensor.layout}")
    devices = backend.capabilities.devices
    if tensor.device.type not in devices:
        raise ValueError(
            f"{name}: expected a tensor on {' or '.join(sorted(devices))} (backend {backend.name!r}), "
            f"got one on {tensor.device}"
        )


def check_int(name: str, value: object) -> int:
    """`value` as an int: anything that Python itself takes for a whole number.

    A size that varies in a traced program is returned as it is: as an int, it would be a constant of the program.
    """
    if type(value) is int or isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {type(value).__name__} {value!r}") from None


def _check_code(name: str, value: object, bits: int) -> int:
    code = check_int(name, value)
    if not 0 <= code <= max_code(bits):
        raise ValueError(f"{name}: expected a code of {bits} bits, 0..{max_code(bits)}, got {code}")
    return code


def check_code_range(name: str, codes: torch.Tensor, bits: int) -> None:
    """Every uint8 code is below 2**bits."""
    if bits == 8 or codes.is_meta:  # has no values
        return
    wrong = codes > max_code(bits)
    if bool(wrong.any()):
        index = tuple(int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"{name}: expected codes of {bits} bits, 0..{max_code(bits)}, "
            f"got {int(codes[index])} at index {list(index)}"
        )


def _check_word_count(name: str, words: torch.Tensor, columns: int, bits: int, reason: str) -> None:
    expected = words_per_row(columns, bits)
    if words.shape[-1] != expected:
        raise ValueError(
            f"{name}: expected {expected} words a row for {reason}={columns} at {bits} bits "
            f"({codes_per_word(bits)} codes a word), got shape {list(words.shape)}"
        )


def _check_input(backend: Backend, x: object, in_features: object, bits: int) -> int:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x: expected uint8 codes [..., K] or packed int64 words, got {type(x).__name__}")
    if x.dtype is torch.int64:
        packed = _check_tensor(backend, "x", x, torch.int64, "packed words [..., ceil(K/E)]")
        if in_features is None:
            raise ValueError(
                "in_features: needed because x is packed (int64), whose last word may be partly used; got None"
            )
        columns = check_int("in_features", in_features)
        if columns < 0:
            raise ValueError(f"in_features: expected a count of at least 0, got {columns}")
        _check_word_count("x", packed, columns, bits, "in_features")
        return columns
    if x.dtype is not torch.uint8:
        raise TypeError(f"x: expected uint8 codes [..., K] or packed int64 words, got {describe(x)}")
    codes = _check_tensor(backend, "x", x, torch.uint8, "codes [..., K]")
    if in_features is not None and check_int("in_features", in_features) != codes.shape[-1]:
        raise ValueError(f"x: expected {in_features} codes a row, as in_features says, got {describe(codes)}")
    check_code_range("x", codes, bits)
    return codes.shape[-1]


def _check_bias(backend: Backend, bias: object, out_features: int) -> int:
    """Largest magnitude in the bias, 0 if there is none."""
    if bias is None:
        return 0
    expected = f"bias: expected uint8 or int32 [{out_features}]"
    if not isinstance(bias, torch.Tensor):
        raise TypeError(f"{expected}, got {type(bias).__name__}")
    if bias.dtype not in (torch.uint8, torch.int32):
        raise TypeError(f"{expected}, got {describe(bias)}")
    if list(bias.shape) != [out_features]:
        raise ValueError(f"{expected}, got {describe(bias)}")
    check_place(backend, "bias", bias)
    return int(bias.to(torch.int64).abs().max()) if out_features else 0


def _check_scale(backend: Backend, scale: object, out_features: int) -> None:
    if scale is None:
        return
    expected = f"scale: expected float32 [], [1] or [{out_features}]"
    if not isinstance(scale, torch.Tensor):
        raise TypeError(f"{expected}, got {type(scale).__name__}")
    if scale.dtype is not torch.float32:
        raise TypeError(f"{expected}, got {describe(scale)}")
    if list(scale.shape) not in ([], [1], [out_features]):
        raise ValueError(f"{expected}, got {describe(scale)}")
    check_place(backend, "scale", scale)
    if not bool(scale.isfinite().all()):
        raise ValueError("scale: expected finite values, got NaN or infinity")


def _centered_magnitude(zero: int, bits: int) -> int:
    """Largest |code - zero| of a code of `bits` bits."""
    return max(zero, max_code(bits) - zero)


def describe(tensor: torch.Tensor) -> str:
    """A tensor in an error message: ``uint8 [8, 16]``."""
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype without ``torch.``."""
    return str(dtype).removeprefix("torch.")
