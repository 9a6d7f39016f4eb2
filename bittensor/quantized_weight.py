"""Group-quantized weights: packed codes with a scale, and a zero point or an offset, for each group of columns."""

from __future__ import annotations

import torch

from .checks import _check_code_range, check_int, describe, dtype_name
from .codes import words_per_row
from .ops import pack_weights, unpack_weights

GROUP_BITS = (2, 4, 8)
"""Code widths of a group-quantized weight."""

SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Dtypes in which scales and offsets are kept; each is widened to float32 exactly."""

GROUP_SIZE_MULTIPLE = 8
"""A group is a multiple of this many columns, or a whole row."""


class QuantizedWeight:
    """A weight ``[N, K]`` as codes of 2, 4 or 8 bits (docs/numerics.md). `bittensor.quantize` makes one.

    Every row is cut into G = ceil(K / group_size) groups of columns, of which the last may be shorter. In row n and
    group g a code q stands for

    ========  ==================================  =============================
    zero      value                               given by
    ========  ==================================  =============================
    symmetric ``scale * (q - 2**(bits-1))``       neither `zeros` nor `offsets`
    integer   ``scale * (q - zeros[n, g])``       `zeros`
    float     ``scale * q + offsets[n, g]``       `offsets`
    ========  ==================================  =============================

    The tensors are kept as they come, without a copy. Equality of two weights is `equal`.

    Args:
        words: int64 ``[N, ceil(K/E)]`` with E = 64 / bits, as `bittensor.pack_weights` makes it.
        scales: finite float16, bfloat16 or float32 ``[N, G]``; of any sign, or 0.
        zeros: uint8 codes ``[N, G]``, or None.
        offsets: finite ``[N, G]`` of the dtype of `scales`, or None.
        shape: (N, K), each at least 1.
        bits: 2, 4 or 8.
        group_size: columns of a group: a multiple of 8 up to K, or K itself; None means K, one group for a row.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not fit together, a scale or an offset that is not finite, a zero
            point that is not a code, or `zeros` and `offsets` at once.

    >>> import torch
    >>> codes = torch.tensor([[8, 9, 0, 15]], dtype=torch.uint8)
    >>> weight = QuantizedWeight.from_codes(codes, scales=torch.tensor([[0.5]]), group_size=None)
    >>> weight
    QuantizedWeight(shape=[1, 4], bits=4, group_size=4, zero='symmetric', scales=float32, 12 bytes, 24 bits per weight)
    >>> weight.dequantize()
    tensor([[ 0.0000,  0.5000, -4.0000,  3.5000]])
    """

    def __init__(
        self,
        words: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
        *,
        shape: tuple[int, int],
        group_size: int | None,
        bits: int = 4,
    ) -> None:
        rows, columns = _check_shape(shape)
        self.shape = (rows, columns)
        self.bits = check_group_bits(bits)
        self.group_size = check_group_size(group_size, columns)
        grouped = [rows, -(-columns // self.group_size)]
        _check_tensor("words", words, (torch.int64,), [rows, words_per_row(columns, self.bits)])
        _check_tensor("scales", scales, SCALE_DTYPES, grouped, words.device)
        _check_finite("scales", scales)
        if zeros is not None and offsets is not None:
            raise ValueError("zeros, offsets: expected at most one of them, got both")
        if zeros is not None:
            _check_tensor("zeros", zeros, (torch.uint8,), grouped, words.device)
            _check_code_range("zeros", zeros, self.bits)
        if offsets is not None:
            _check_tensor("offsets", offsets, (scales.dtype,), grouped, words.device)
            _check_finite("offsets", offsets)
        self.words = words
        self.scales = scales
        self.zeros = zeros
        self.offsets = offsets

    @classmethod
    def from_codes(
        cls,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
        *,
        group_size: int | None,
        bits: int = 4,
    ) -> QuantizedWeight:
        """Pack uint8 codes ``[N, K]``; the other arguments are those of the class.

        >>> import torch
        >>> codes = torch.tensor([[0, 3], [1, 2]], dtype=torch.uint8)
        >>> scales, zeros = torch.tensor([[0.5], [2.0]]), torch.tensor([[0], [1]], dtype=torch.uint8)
        >>> QuantizedWeight.from_codes(codes, scales, zeros, group_size=None, bits=2).dequantize()
        tensor([[0.0000, 1.5000],
                [0.0000, 2.0000]])
        """
        if isinstance(codes, torch.Tensor) and codes.dim() != 2:
            raise ValueError(f"codes: expected uint8 [N, K], got {describe(codes)}")
        words = pack_weights(codes, check_group_bits(bits))
        rows, columns = codes.shape
        return cls(words, scales, zeros, offsets, shape=(rows, columns), group_size=group_size, bits=bits)

    @property
    def zero(self) -> str:
        """Kind of zero: "symmetric", "integer" or "float", as in `bittensor.quantize`."""
        if self.zeros is not None:
            return "integer"
        return "symmetric" if self.offsets is None else "float"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, scales, zero points, offsets and unused bits of words included."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def codes(self) -> torch.Tensor:
        """The unpacked codes: uint8 ``[N, K]``."""
        return unpack_weights(self.words, self.shape[1], self.bits)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The values that the codes stand for: ``[N, K]`` of `dtype`: float32, float16 or bfloat16.

        Computed in float32: the difference of codes is exact, the product is rounded, then the sum with the offset,
        then the cast to `dtype`.
        """
        if dtype not in SCALE_DTYPES:
            raise TypeError(f"dtype: expected {_dtype_names(SCALE_DTYPES)}, got {dtype}")
        values = self.codes().to(torch.float32)
        whole = self.shape[1] - self.shape[1] % self.group_size
        groups = whole // self.group_size
        self._dequantize_groups(values[:, :whole].view(-1, groups, self.group_size), slice(0, groups))
        if whole < self.shape[1]:
            self._dequantize_groups(values[:, None, whole:], slice(groups, None))
        return values.to(dtype)

    def equal(self, other: QuantizedWeight) -> bool:
        """Whether both hold the same codes, scales, zero points and offsets in the same form.

        The unused bits of words do not count.

        >>> import torch, bittensor
        >>> weight = bittensor.quantize(torch.eye(8), group_size=8)
        >>> weight.equal(bittensor.quantize(torch.eye(8), group_size=8)), weight.equal(weight.words)
        (True, False)
        """
        if not isinstance(other, QuantizedWeight):
            return False
        forms = [(each.shape, each.bits, each.group_size, each.zero) for each in (self, other)]
        if forms[0] != forms[1]:
            return False
        pairs = [(self.codes(), other.codes()), *zip(self._tensors()[1:], other._tensors()[1:], strict=True)]
        return all(mine.dtype == theirs.dtype and torch.equal(mine, theirs) for mine, theirs in pairs)

    def __repr__(self) -> str:
        return (
            f"QuantizedWeight(shape={list(self.shape)}, bits={self.bits}, group_size={self.group_size}, "
            f"zero={self.zero!r}, scales={dtype_name(self.scales.dtype)}, {_size(self.nbytes)}, "
            f"{self.bits_per_weight:.4g} bits per weight)"
        )

    def _dequantize_groups(self, values: torch.Tensor, groups: slice) -> None:
        """Turn codes ``[N, groups, columns]`` into values in place."""
        if self.zeros is not None:
            values -= self.zeros[:, groups, None]
        elif self.offsets is None:
            values -= 1 << (self.bits - 1)
        values *= self.scales[:, groups, None].to(torch.float32)
        if self.offsets is not None:
            values += self.offsets[:, groups, None].to(torch.float32)

    def _tensors(self) -> list[torch.Tensor]:
        return [each for each in (self.words, self.scales, self.zeros, self.offsets) if each is not None]


def check_group_bits(bits: object) -> int:
    """`bits` as an int, out of `GROUP_BITS`."""
    width = check_int("bits", bits)
    if width not in GROUP_BITS:
        raise ValueError(f"bits: expected one of {GROUP_BITS} for a group-quantized weight, got {width}")
    return width


def check_group_size(group_size: object, columns: int) -> int:
    """`group_size` as a number of columns; None stands for all of them."""
    if group_size is None:
        return columns
    size = check_int("group_size", group_size)
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


def _check_shape(shape: object) -> tuple[int, int]:
    expected = "shape: expected (N, K), two counts of at least 1"
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"{expected}, got {type(shape).__name__} {shape!r}")
    counts = [check_int("shape", count) for count in shape]
    if len(counts) != 2 or min(counts) < 1:
        raise ValueError(f"{expected}, got {shape}")
    return counts[0], counts[1]


def _check_tensor(
    name: str,
    value: object,
    dtypes: tuple[torch.dtype, ...],
    shape: list[int],
    device: torch.device | None = None,
) -> None:
    expected = f"{name}: expected {_dtype_names(dtypes)} {shape}"
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


def _check_finite(name: str, values: torch.Tensor) -> None:
    wrong = ~values.isfinite()
    if bool(wrong.any()):
        index = wrong.nonzero()[0].tolist()
        raise ValueError(f"{name}: expected finite values, got {float(values[tuple(index)])} at index {index}")


def _dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    names = [dtype_name(dtype) for dtype in dtypes]
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _size(nbytes: int) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes} bytes"
