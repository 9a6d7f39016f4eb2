"""Packing and unpacking of codes by the current backend, or in plain torch where it does not declare them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .backend import PROTOCOL_VERSION, Backend, Capabilities
from .checks import REFUSALS, check_pack, check_unpack
from .codes import codes_per_word, max_code, words_per_row
from .registry import current_backend


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes ``[..., K]`` as words, as `bittensor.pack_weights`, whether the backend declares that or not.

    Raises:
        TypeError, ValueError: what `bittensor.pack_weights` refuses.
    """
    backend = _declaring("pack", bits)
    if not backend.capabilities.checks_arguments:
        check_pack(backend, codes, bits)
    try:
        return backend.pack(codes, bits)
    except REFUSALS:
        check_pack(backend, codes, bits)
        raise


def unpack_codes(words: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
    """Words as uint8 codes ``[..., columns]``, as `bittensor.unpack_weights`, whether the backend declares that or not.

    Raises:
        TypeError, ValueError: what `bittensor.unpack_weights` refuses.
    """
    backend = _declaring("unpack", bits)
    check_unpack(backend, words, columns, bits)
    return backend.unpack(words, columns, bits)


def plainly_packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes that have been checked as words, in plain torch (docs/numerics.md, section 1)."""
    words, per_word = words_per_row(codes.shape[-1], bits), codes_per_word(bits)
    if codes.numel() == 0:  # a matrix without rows may have columns next to 2^63, which nothing can pad
        return codes.new_zeros((*codes.shape[:-1], words), dtype=torch.int64)
    codes = F.pad(codes, (0, words * per_word - codes.shape[-1]))
    lanes = codes.reshape(*codes.shape[:-1], words, per_word).to(torch.int64)
    # The lanes do not overlap, so their sum is their union; the top lane wraps into the sign bit, as it should.
    return (lanes << _shifts(bits)).sum(dim=-1)


def plainly_unpacked(words: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
    """Words that have been checked as codes, in plain torch (docs/numerics.md, section 1)."""
    lanes = (words.unsqueeze(-1) >> _shifts(bits)) & max_code(bits)
    return lanes.flatten(-2)[..., :columns].to(torch.uint8).contiguous()


class _PlainTorch(Backend):
    """Packs and unpacks for backends that do not."""

    name = "plain torch"
    protocol_version = PROTOCOL_VERSION
    capabilities = Capabilities(operations=frozenset({"pack", "unpack"}))

    def pack(self, codes: torch.Tensor, bits: int) -> torch.Tensor:
        return plainly_packed(codes, bits)

    def unpack(self, words: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
        return plainly_unpacked(words, columns, bits)


_PLAIN_TORCH = _PlainTorch()


def _declaring(operation: str, bits: int) -> Backend:
    """The current backend if it declares `operation` on codes of `bits`."""
    declared = (backend := current_backend()).capabilities
    return backend if operation in declared.operations and bits in declared.bits else _PLAIN_TORCH


def _shifts(bits: int) -> torch.Tensor:
    return torch.arange(codes_per_word(bits), device="cpu") * bits
