"""Backends that are wrong in one way each, derived from the reference. The suite must reject every one of them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from bittensor_reference import ReferenceBackend

from bittensor.backend import Capabilities
from bittensor.checks import check_pack, check_packed_matmul, check_unpack
from bittensor.codes import codes_per_word, max_code

Tensor = torch.Tensor


class Sound(ReferenceBackend):
    """Nothing is wrong with it: the control. Its steps are methods, so that a fault replaces one of them."""

    name = "sound"

    def unpack(self, words: Tensor, columns: int, bits: int) -> Tensor:
        return super().unpack(words, columns, bits).contiguous()

    def packed_matmul(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        bits: int,
        in_features: int | None,
        x_zero: int,
        weight_zero: int,
        scale: Tensor | None,
        out_zero: int,
        out_dtype: torch.dtype | None,
    ) -> Tensor:
        if x.dtype == torch.int64:
            assert in_features is not None
            x = self.codes_of(x, in_features, bits)
        codes = self.codes_of(weight, x.shape[-1], bits)
        acc = self.product(x.long() - x_zero, codes.long() - weight_zero, bits)
        if bias is not None:
            acc = self.add_bias(acc, bias)
        if out_dtype is torch.int32:
            return acc.to(torch.int32)
        if scale is not None:
            acc = self.rescale(acc, scale) + out_zero
        return self.pack(self.clamp(acc, bits), bits)

    def codes_of(self, words: Tensor, columns: int, bits: int) -> Tensor:
        return ReferenceBackend().unpack(words, columns, bits)

    def product(self, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        return F.linear(x.double(), weight.double()).long()

    def add_bias(self, acc: Tensor, bias: Tensor) -> Tensor:
        return acc + bias.long()

    def rescale(self, acc: Tensor, scale: Tensor) -> Tensor:
        return torch.round(acc.float() * scale)

    def clamp(self, acc: Tensor, bits: int) -> Tensor:
        return acc.clamp(0, max_code(bits)).to(torch.uint8)


# Packing


class SwappedNibbles(Sound):
    def pack(self, codes: Tensor, bits: int) -> Tensor:
        even = codes.shape[-1] // 2 * 2
        swapped = codes.clone()
        swapped[..., 0:even:2], swapped[..., 1:even:2] = codes[..., 1:even:2], codes[..., 0:even:2]
        return super().pack(swapped, bits)


class HighNibbleFirst(Sound):
    """Consistent with itself: packing and unpacking agree."""

    def pack(self, codes: Tensor, bits: int) -> Tensor:
        words = super().pack(codes, bits)
        return super().pack(super().unpack(words, words.shape[-1] * codes_per_word(bits), bits).flip(-1), bits).flip(-1)

    def unpack(self, words: Tensor, columns: int, bits: int) -> Tensor:
        lanes = super().unpack(words, words.shape[-1] * codes_per_word(bits), bits)
        return lanes.unflatten(-1, (words.shape[-1], -1)).flip(-1).flatten(-2)[..., :columns].contiguous()


class LastCodeNotMasked(Sound):
    """Takes the unused bits of a row's last word for zeros, and so shifts without a mask."""

    def unpack(self, words: Tensor, columns: int, bits: int) -> Tensor:
        codes = super().unpack(words, columns, bits)
        if last := columns % codes_per_word(bits):
            codes[..., -1] = (words[..., -1] >> (bits * (last - 1))).to(torch.uint8)
        return codes


class ArithmeticShift(Sound):
    """Sign bits flow into the last code of a full word."""

    def unpack(self, words: Tensor, columns: int, bits: int) -> Tensor:
        codes = super().unpack(words, columns, bits)
        if columns and columns % codes_per_word(bits) == 0:
            codes[..., -1] = (words[..., -1] >> (64 - bits)).to(torch.uint8)
        return codes


class UnusedBitsSet(Sound):
    def pack(self, codes: Tensor, bits: int) -> Tensor:
        words = super().pack(codes, bits)
        if codes.shape[-1] % codes_per_word(bits):
            words[..., -1] |= -(2**63)
        return words


class ReturnsItsInput(Sound):
    """A word of eight bytes is its own packing, so why copy."""

    def pack(self, codes: Tensor, bits: int) -> Tensor:
        whole = bits == 8 and codes.shape[-1] % 8 == 0 and codes.is_contiguous()
        return codes.view(torch.int64) if whole and codes.storage_offset() % 8 == 0 else super().pack(codes, bits)


class WholeBlocksEndEarly(Sound):
    """A row without a remainder loses its last code."""

    def unpack(self, words: Tensor, columns: int, bits: int) -> Tensor:
        codes = super().unpack(words, columns, bits)
        if columns and columns % 512 == 0:
            codes[..., -1] = 0
        return codes


class StridedResult(Sound):
    def unpack(self, words: Tensor, columns: int, bits: int) -> Tensor:
        codes = super().unpack(words, columns, bits)
        return codes.transpose(0, -1).contiguous().transpose(0, -1)


class MasksCodes(Sound):
    """Claims to check, and masks what does not fit."""

    capabilities = Capabilities(checks_arguments=True)

    def pack(self, codes: Tensor, bits: int) -> Tensor:
        check_pack(self, codes & max_code(bits) if isinstance(codes, Tensor) else codes, bits)
        return super().pack(codes & max_code(bits), bits)

    def unpack(self, words: Tensor, columns: int, bits: int) -> Tensor:
        check_unpack(self, words, columns, bits)
        return super().unpack(words, columns, bits)

    def packed_matmul(self, *arguments: Any) -> Tensor:
        check_packed_matmul(self, *arguments)
        return super().packed_matmul(*arguments)


# The product


class KTailDropped(Sound):
    def product(self, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        whole = x.shape[-1] // codes_per_word(bits) * codes_per_word(bits)
        return super().product(x[..., :whole], weight[..., :whole], bits)


class XZeroOffByOne(Sound):
    def packed_matmul(self, *arguments: Any) -> Tensor:
        x, weight, bias, bits, in_features, x_zero, *rest = arguments
        return super().packed_matmul(x, weight, bias, bits, in_features, x_zero + (x_zero > 1), *rest)


class WeightZeroIgnoredOnTail(Sound):
    def packed_matmul(self, *arguments: Any) -> Tensor:
        self.zero = arguments[6]
        return super().packed_matmul(*arguments)

    def product(self, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        weight[..., weight.shape[-1] // codes_per_word(bits) * codes_per_word(bits) :] += self.zero
        return super().product(x, weight, bits)


class UnusedBitsOfWeightUsed(Sound):
    """Multiplies whole words: right as long as unused bits are 0 and x has no zero point."""

    def packed_matmul(self, *arguments: Any) -> Tensor:
        self.words = arguments[1]
        self.zero = arguments[6]
        return super().packed_matmul(*arguments)

    def product(self, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        lanes = self.words.shape[-1] * codes_per_word(bits)
        whole = self.codes_of(self.words, lanes, bits).long()
        whole[:, : weight.shape[-1]] -= self.zero
        padding = lanes - x.shape[-1]
        return super().product(F.pad(x, (0, padding), value=int(x.flatten()[0]) if x.numel() else 0), whole, bits)


class SixteenBitSaturation(Sound):
    """Adds neighbouring products with saturation at 16 bits, as pmaddubsw does."""

    def product(self, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        odd = x.shape[-1] % 2
        products = F.pad(x, (0, odd)).unsqueeze(-2) * F.pad(weight, (0, odd))
        return products.unflatten(-1, (-1, 2)).sum(-1).clamp(-(2**15), 2**15 - 1).sum(-1)


class Float32Accumulator(Sound):
    def product(self, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        return F.linear(x.float(), weight.float()).long()


class RowPositionMatters(Sound):
    """The kernel for a tail of rows is wrong."""

    def product(self, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        acc = super().product(x, weight, bits)
        if acc.dim() == 2:
            acc[acc.shape[0] // 4 * 4 :] += 1
        return acc


class NeighbourRowLeaks(Sound):
    def product(self, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        acc = super().product(x, weight, bits)
        return acc + (acc[:1] > acc[1:2]).long() if acc.dim() == 2 and acc.shape[0] > 1 else acc


class OutputsWrapAt16Bits(Sound):
    """Counts outputs in uint16."""

    def product(self, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        acc = super().product(x, weight, bits)
        return acc[..., torch.arange(acc.shape[-1]) % 2**16]


class RowsWrapAt16Bits(Sound):
    """Counts rows in uint16."""

    def product(self, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        acc = super().product(x, weight, bits)
        return acc[torch.arange(len(acc)) % 2**16] if acc.dim() == 2 else acc


class ThreadsMatter(Sound):
    def product(self, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        return super().product(x, weight, bits) + (torch.get_num_threads() == 3)


class SharedScratch(Sound):
    """Keeps x, by its shape, where another thread's call of the same shape overwrites it."""

    scratch: ClassVar[dict[torch.Size, Tensor]] = {}

    def product(self, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        self.scratch[x.shape] = x
        time.sleep(0.002)
        return super().product(self.scratch[x.shape], weight, bits)


# Bias, scale, rounding


class Wraps(Sound):
    def clamp(self, acc: Tensor, bits: int) -> Tensor:
        return (acc.long() & max_code(bits)).to(torch.uint8)


class RoundsHalfAwayFromZero(Sound):
    def rescale(self, acc: Tensor, scale: Tensor) -> Tensor:
        product = acc.float() * scale
        return product.sign() * (product.abs() + 0.5).floor()


class RoundsTheExactProduct(Sound):
    """A product in float64 is closer, and not what the contract says."""

    def rescale(self, acc: Tensor, scale: Tensor) -> Tensor:
        return torch.round(acc.double() * scale.double())


class ScaleAlongRows(Sound):
    def rescale(self, acc: Tensor, scale: Tensor) -> Tensor:
        square = acc.dim() >= 2 and scale.numel() == acc.shape[-2] and scale.dim() == 1
        return super().rescale(acc, scale.unsqueeze(-1) if square else scale)


class NegatedScaleReadRaw(Sound):
    """Reads memory without looking at torch's negation bit. Operators never see it: torch resolves it for them."""

    capabilities = replace(Sound.capabilities, operators=True, checks_arguments=True)

    def rescale(self, acc: Tensor, scale: Tensor) -> Tensor:
        return super().rescale(acc, -scale if scale.is_neg() else scale)


class BiasOnlyForOneRow(Sound):
    def add_bias(self, acc: Tensor, bias: Tensor) -> Tensor:
        return super().add_bias(acc, bias) if acc.numel() == acc.shape[-1] else acc


class BytesOfBiasMasked(Sound):
    """Takes a uint8 bias for codes."""

    def packed_matmul(self, x: Tensor, weight: Tensor, bias: Tensor | None, bits: int, *rest: Any) -> Tensor:
        if bias is not None and bias.dtype is torch.uint8:
            bias = bias & max_code(bits)
        return super().packed_matmul(x, weight, bias, bits, *rest)


class BiasAfterScale(Sound):
    def packed_matmul(self, *arguments: Any) -> Tensor:
        self.scale = arguments[7]
        return super().packed_matmul(*arguments)

    def add_bias(self, acc: Tensor, bias: Tensor) -> Tensor:
        return super().add_bias(acc, bias if self.scale is None else bias.clamp(-(2**15), 2**15 - 1))


# Memory


def as_if_contiguous(tensor: Tensor) -> Tensor:
    size, available = tensor.numel(), tensor.untyped_storage().nbytes() // tensor.element_size()
    offset = max(0, min(tensor.storage_offset(), available - size))
    flat = tensor.as_strided((min(size, available),), (1,), offset)
    return F.pad(flat, (0, size - flat.numel())).view(tensor.shape)


class StrideOfXIgnored(Sound):
    def product(self, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        return super().product(x, weight, bits)

    def packed_matmul(self, x: Tensor, *rest: Any) -> Tensor:
        return super().packed_matmul(as_if_contiguous(x), *rest)


class StrideOfBiasIgnored(Sound):
    def add_bias(self, acc: Tensor, bias: Tensor) -> Tensor:
        return super().add_bias(acc, as_if_contiguous(bias))


class WritesToItsInput(Sound):
    """Clears the unused bits of x where they are."""

    def packed_matmul(self, *arguments: Any) -> Tensor:
        x, in_features, bits = arguments[0], arguments[4], arguments[3]
        result = super().packed_matmul(*arguments)
        if x.dtype == torch.int64 and in_features % codes_per_word(bits):
            x[..., -1] &= (1 << (bits * (in_features % codes_per_word(bits)))) - 1
        return result


class ReadsPastTheEnd(Sound):
    def packed_matmul(self, x: Tensor, *rest: Any) -> Tensor:
        if x.is_contiguous() and x.numel():
            ctypes.string_at(x.data_ptr() + x.numel() * x.element_size(), 1)
        return super().packed_matmul(x, *rest)


class ReadsBeforeTheStart(Sound):
    def unpack(self, words: Tensor, columns: int, bits: int) -> Tensor:
        if words.numel():
            ctypes.string_at(words.data_ptr() - 1, 1)
        return super().unpack(words, columns, bits)


class FlattensNoRows(Sound):
    def packed_matmul(self, x: Tensor, *rest: Any) -> Tensor:
        result = super().packed_matmul(x, *rest)
        return result if x.numel() else result.flatten()


class FloatsForNoRows(Sound):
    def packed_matmul(self, x: Tensor, *rest: Any) -> Tensor:
        result = super().packed_matmul(x, *rest)
        return result if result.numel() else result.float()


class _Reuses(Sound):
    """Has one buffer for the results of a shape."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[torch.Size, torch.dtype], Tensor] = {}

    def reuse(self, result: Tensor) -> Tensor:
        buffer = self.buffers.setdefault((result.shape, result.dtype), torch.empty_like(result))
        return buffer.copy_(result)


class PackReusesItsResult(_Reuses):
    def pack(self, codes: Tensor, bits: int) -> Tensor:
        return self.reuse(super().pack(codes, bits))


class UnpackReusesItsResult(_Reuses):
    def unpack(self, words: Tensor, columns: int, bits: int) -> Tensor:
        return self.reuse(super().unpack(words, columns, bits))


class MatmulReusesItsResult(_Reuses):
    def packed_matmul(self, *arguments: Any) -> Tensor:
        return self.reuse(super().packed_matmul(*arguments))


class CentersOneTensorTwice(Sound):
    """Unpacks a tensor once if it is both operands, and takes both zero points off the same codes."""

    def packed_matmul(self, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        bias, bits, columns, x_zero, weight_zero, *others = rest
        if x.numel() and x.data_ptr() == weight.data_ptr():
            x_zero = weight_zero = x_zero + weight_zero
        return super().packed_matmul(x, weight, bias, bits, columns, x_zero, weight_zero, *others)


class EndsTheProcess(Sound):
    def pack(self, codes: Tensor, bits: int) -> Tensor:
        if codes.shape[-1] == 21:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().pack(codes, bits)


# The protocol


class ComputesWhatItDoesNotDeclare(Sound):
    """Declares 4 and 8 bits, and serves 1 and 2 all the same."""

    capabilities = Capabilities(bits=frozenset({4, 8}), checks_arguments=True)

    def pack(self, codes: Tensor, bits: int) -> Tensor:
        check_pack(Sound(), codes, bits)
        return super().pack(codes, bits)


class DiesOnWhatItDoesNotDeclare(Sound):
    capabilities = Capabilities(bits=frozenset({4, 8}), checks_arguments=True)

    def unpack(self, words: Tensor, columns: int, bits: int) -> Tensor:
        if bits == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        check_unpack(self, words, columns, bits)
        return super().unpack(words, columns, bits)


class _WithVariant(Sound):
    """Counts calls of kernels, under the names that `kernel` gives them."""

    capabilities = replace(Sound.capabilities, variants=("fast",))
    kernel = "packed_matmul_fast"

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def packed_matmul(self, *arguments: Any) -> Tensor:
        self.calls[self.kernel] = self.calls.get(self.kernel, 0) + 1
        return super().packed_matmul(*arguments)

    def variant(self, name: str) -> _WithVariant:
        return type(self)()

    def kernel_calls(self) -> Mapping[str, int]:
        return dict(self.calls)


class OwnKernels(_WithVariant):
    """A control: the variant does as it says."""


class BorrowedKernels(_WithVariant):
    kernel = "packed_matmul_slow"


class NoKernelsCounted(_WithVariant):
    def kernel_calls(self) -> Mapping[str, int]:
        return {}


class KernelsNeverRun(_WithVariant):
    """Has a kernel, shows its count, and computes by another way."""

    def kernel_calls(self) -> Mapping[str, int]:
        return {"packed_matmul_fast": 7}


class IdleKernel(_WithVariant):
    """Lists a kernel that nothing calls."""

    def kernel_calls(self) -> Mapping[str, int]:
        return {**self.calls, "pack_fast": 0}


def faults_of(module: str, kind: type[Sound]) -> dict[str, type[Sound]]:
    """The classes of a kind that a module defines, by name, but for those that begin with an underscore."""
    return {
        name: each
        for name, each in vars(sys.modules[module]).items()
        if isinstance(each, type) and issubclass(each, kind) and each.__module__ == module and not name.startswith("_")
    }


FAULTS = faults_of(__name__, Sound)
