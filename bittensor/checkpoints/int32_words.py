"""int32 words of codes, lowest bits first, as GPTQ and compressed-tensors pack them: two make one of our words."""

from __future__ import annotations

import torch

from ..packing import pack_codes, unpack_codes


def words_per_int32_row(columns: int, bits: int) -> int:
    """Number of int32 words that hold `columns` codes.

    >>> words_per_int32_row(9, bits=4)
    2
    """
    return -(-columns * bits // 32)


def to_words(packed: torch.Tensor) -> torch.Tensor:
    """int32 ``[..., W]`` to int64 words ``[..., ceil(W / 2)]``; little-endian, so that only an odd end is copied.

    >>> to_words(torch.tensor([[1, 0, 3]], dtype=torch.int32)).tolist()
    [[1, 3]]
    """
    if packed.shape[-1] % 2:
        packed = torch.nn.functional.pad(packed, (0, 1))
    words = packed.reshape(-1).view(torch.int64)  # flat: a lone row may have any stride
    return words.reshape(*packed.shape[:-1], packed.shape[-1] // 2)


def from_words(words: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
    """Undo `to_words` for rows of `columns` codes.

    >>> from_words(torch.tensor([[1, 3]]), columns=24, bits=4).tolist()
    [[1, 0, 3]]
    """
    packed = words.reshape(-1).view(torch.int32).reshape(*words.shape[:-1], 2 * words.shape[-1])
    return packed[..., : words_per_int32_row(columns, bits)].contiguous()


def unpack(packed: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
    """int32 ``[..., W]`` to uint8 codes ``[..., columns]``."""
    return unpack_codes(to_words(packed), columns, bits)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes ``[..., K]`` to int32 ``[..., ceil(K * bits / 32)]``."""
    return from_words(pack_codes(codes, bits), codes.shape[-1], bits)
