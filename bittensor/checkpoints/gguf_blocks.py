"""The blocks of GGUF as codes, scales and offsets. No value changes: dequantizing gives what the format defines.

Layouts and formulas: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, and ``dequantize_row_*`` of
``ggml-quants.c`` beside it. d, dmin and m are float16; q are codes.

======  =====  ====================================  ==========================================================
type    group  value                                 held as
======  =====  ====================================  ==========================================================
Q4_0    32     ``d * (q - 8)``                       4 bits, symmetric, scale d
Q4_1    32     ``d * q + m``                         4 bits, float, scale d, offset m
Q8_0    32     ``d * q``, q signed                   8 bits, symmetric, scale d, codes q + 128
Q4_K    32     ``(d * sc) * q - dmin * mn``          4 bits, float, float32: both products are exact
Q6_K    16     ``(d * sc) * (q - 32)``, sc signed    8 bits, symmetric, float32, codes q - 32 + 128
======  =====  ====================================  ==========================================================

Q4_K and Q6_K share one float16 among eight or sixteen groups, which the scheme of docs/numerics.md does not, so that
they take more memory than in the file: 6 bits for a weight instead of 4.5, and 10 instead of 6.5625.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Groups:
    """Decoded blocks: uint8 codes ``[rows, K]``, scales ``[rows, G]``, offsets likewise or None."""

    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None = None


@dataclass(frozen=True)
class BlockDecoder:
    """How the blocks of a type become a group-quantized weight.

    Attributes:
        bits, group_size, zero, scale_dtype: the form of the weight.
        decode: blocks uint8 ``[rows, blocks, bytes]`` to `Groups`.
    """

    bits: int
    group_size: int
    zero: str
    scale_dtype: torch.dtype
    decode: Callable[[torch.Tensor], Groups]


def _halves(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The float16 at byte `start` of each block: ``[rows, blocks]``."""
    return blocks[..., start : start + 2].contiguous().view(torch.float16).squeeze(-1)


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """``[..., n]`` bytes to ``[..., 2, n]`` codes: all low nibbles, then all high ones."""
    return torch.stack((packed & 15, packed >> 4), dim=-2)


def _split(tensor: torch.Tensor, *sizes: int) -> torch.Tensor:
    """`tensor` with its last dimension cut into `sizes`."""
    return tensor.reshape(*tensor.shape[:-1], *sizes)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """``[rows, ...]`` to ``[rows, -1]``."""
    return tensor.reshape(len(tensor), -1)


def _q4_0(blocks: torch.Tensor) -> Groups:
    return Groups(_rows(_nibbles(blocks[..., 2:])), _halves(blocks, 0))


def _q4_1(blocks: torch.Tensor) -> Groups:
    return Groups(_rows(_nibbles(blocks[..., 4:])), _halves(blocks, 0), _halves(blocks, 2))


def _q8_0(blocks: torch.Tensor) -> Groups:
    return Groups(_rows(blocks[..., 2:] ^ 128), _halves(blocks, 0))  # signed to unsigned: the highest bit turns


def _q4_k(blocks: torch.Tensor) -> Groups:
    # Bytes 4 to 15 hold eight scales and eight minima of 6 bits: the first four of each whole, with the two highest
    # bits of the last four above them, whose lowest four bits are the nibbles of bytes 12 to 15.
    first, second, low = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    multipliers = torch.cat((first & 63, low & 15 | first >> 2 & 48), dim=-1)
    minima = torch.cat((second & 63, low >> 4 | second >> 2 & 48), dim=-1)
    scales = _halves(blocks, 0).to(torch.float32).unsqueeze(-1) * multipliers
    offsets = _halves(blocks, 2).to(torch.float32).unsqueeze(-1) * minima
    codes = _nibbles(_split(blocks[..., 16:], 4, 32))
    return Groups(_rows(codes), _rows(scales), _rows(offsets.neg()))


def _q6_k(blocks: torch.Tensor) -> Groups:
    # 128 values at a time: 64 bytes of low nibbles, 32 bytes with two high bits each for four runs of 32 values.
    low = _split(_nibbles(_split(blocks[..., :128], 2, 64)), 2, 32).flatten(-3, -2)
    high = _split(blocks[..., 128:192], 2, 1, 32)
    high = torch.cat([high >> shift & 3 for shift in (0, 2, 4, 6)], dim=-2)
    multipliers = blocks[..., 192:208].contiguous().view(torch.int8)
    scales = _halves(blocks, 208).to(torch.float32).unsqueeze(-1) * multipliers
    return Groups(_rows((low | high << 4) + (128 - 32)), _rows(scales))


DECODERS = {
    "Q4_0": BlockDecoder(4, 32, "symmetric", torch.float16, _q4_0),
    "Q4_1": BlockDecoder(4, 32, "float", torch.float16, _q4_1),
    "Q8_0": BlockDecoder(8, 32, "symmetric", torch.float16, _q8_0),
    "Q4_K": BlockDecoder(4, 32, "float", torch.float32, _q4_k),
    "Q6_K": BlockDecoder(8, 16, "symmetric", torch.float32, _q6_k),
}
"""Types that become a `bittensor.QuantizedWeight`."""

PLAIN_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""Types that become a tensor."""
