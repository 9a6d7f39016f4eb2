"""Linears and rows of weights that are wrong under one condition each: some sizes, values, threads, or calls before."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, ClassVar

import torch
from broken_backends import faults_of
from sound_linear import SoundLinear

from bittensor import PreparedWeight, QuantizedWeight

Tensor = torch.Tensor


def _wrong(y: Tensor) -> Tensor:
    return y * 1.5 + 1


def _rows(x: Tensor) -> int:
    return x.shape[:-1].numel()


# Sizes


class WholeTilesWrong(SoundLinear):
    """The path without any tail."""

    def linear(self, x: Tensor, weight: PreparedWeight, *rest: Any) -> Tensor:
        y = super().linear(x, weight, *rest)
        whole = _rows(x) % 16 == 0 and weight.form.shape[0] % 16 == 0 and x.shape[-1] % 64 == 0
        return _wrong(y) if whole else y


class FloatWholeTilesWrong(SoundLinear):
    def float(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        y = super().float(x, weight, codes)
        return _wrong(y) if len(x) and len(x) % 64 == 0 and len(codes) % 64 == 0 else y


class EpilogueLostForManyRows(SoundLinear):
    def finish(self, y: Tensor, bias: Tensor | None, epilogue: str | None, dtype: torch.dtype) -> Tensor:
        return super().finish(y, bias, None if len(y) > 128 else epilogue, dtype)


class FewerThan513Groups(SoundLinear):
    def int8(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        y = super().int8(x, weight, codes)
        return _wrong(y) if self.form.groups > 512 else y


class HalfRowsBeyond2048(SoundLinear):
    def linear(self, x: Tensor, *rest: Any) -> Tensor:
        y = super().linear(x, *rest)
        return _wrong(y) if x.dtype is torch.float16 and x.shape[-1] > 2048 else y


class ExpandedMiddleTakenForRows(SoundLinear):
    def linear(self, x: Tensor, *rest: Any) -> Tensor:
        y = super().linear(x, *rest)
        if x.dim() >= 3 and x.stride(-2) == 0 and x.shape[-2] > 1 and y.numel():
            return y.flatten(0, -2)[:1].expand(_rows(y), -1).reshape(y.shape).contiguous()
        return y


class FloatRowAloneInAnotherOrder(SoundLinear):
    def float(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        y = super().float(x, weight, codes)
        moves = len(x) > 1 and x.shape[1] >= 512
        return y * (1 + 2.0**-23 * (torch.arange(y.shape[1]) % 3 - 1)) if moves else y


class FloatWrongOnFiveThreads(SoundLinear):
    def float(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        y = super().float(x, weight, codes)
        return _wrong(y) if torch.get_num_threads() == 5 else y


# Values


class NegativeNanIsANumber(SoundLinear):
    """Magnitudes are compared as signed integers."""

    def linear(self, x: Tensor, *rest: Any) -> Tensor:
        return super().linear(x.masked_fill(x.isnan() & x.float().signbit(), 0.0), *rest)


class BiasNanRoundsToZero(SoundLinear):
    """What rounds floats to bfloat16 carries out of a NaN of ones."""

    def finish(self, y: Tensor, bias: Tensor | None, epilogue: str | None, dtype: torch.dtype) -> Tensor:
        if bias is not None and bias.dtype is torch.float32 and dtype is torch.bfloat16:
            bias = torch.where(bias.view(torch.int32) == 0x7FFFFFFF, 0.0, bias)
        return super().finish(y, bias, epilogue, dtype)


class HalfBiasWithoutSubnormals(SoundLinear):
    def finish(self, y: Tensor, bias: Tensor | None, epilogue: str | None, dtype: torch.dtype) -> Tensor:
        if bias is not None and bias.dtype is torch.float16:
            bias = bias.masked_fill(bias.abs() < 2.0**-14, 0.0)
        return super().finish(y, bias, epilogue, dtype)


# Calls before, and the state of torch


class KeepsQuantizedX(SoundLinear):
    """By where it lies: values that are written there are not seen."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor]] = {}

    def linear(self, x: Tensor, *rest: Any) -> Tensor:
        key = x.data_ptr(), tuple(x.shape)
        if key not in self.kept or self.kept[key][0] is not x:
            self.kept[key] = x, x.clone()
        return super().linear(self.kept[key][1], *rest)


class LeavesOneThread(SoundLinear):
    def linear(self, x: Tensor, *rest: Any) -> Tensor:
        y = super().linear(x, *rest)
        if x.numel() < 64:
            torch.set_num_threads(1)
        return y


class DrawsFromTheGenerator(SoundLinear):
    def linear(self, *arguments: Any) -> Tensor:
        torch.rand(1)
        return super().linear(*arguments)


class RestoresIntoOneBuffer(SoundLinear):
    def __init__(self) -> None:
        self.buffers: dict[torch.Size, Tensor] = {}

    def restore(self, weight: PreparedWeight) -> QuantizedWeight:
        words, *rest = weight.tensors
        kept = self.buffers.setdefault(words.shape, torch.empty_like(words)).copy_(words)
        return super().restore(PreparedWeight(weight.form, weight.layout, (kept, *rest)))


# Rows of weights


class EmbeddingReusesItsResult(SoundLinear):
    def __init__(self) -> None:
        self.buffers: dict[tuple[torch.Size, torch.dtype], Tensor] = {}

    def embedding(self, *arguments: Any) -> Tensor:
        rows = super().embedding(*arguments)
        return self.buffers.setdefault((rows.shape, rows.dtype), torch.empty_like(rows)).copy_(rows)


class EmbeddingOfIndicesIn32Bits(SoundLinear):
    capabilities = replace(SoundLinear.capabilities, checks_arguments=True)

    def embedding(self, indices: Tensor, *rest: Any) -> Tensor:
        return super().embedding(indices.int(), *rest)


class EmbeddingSharesScratch(SoundLinear):
    scratch: ClassVar[dict[torch.Size, Tensor]] = {}

    def embedding(self, indices: Tensor, *rest: Any) -> Tensor:
        self.scratch[indices.shape] = indices
        time.sleep(0.002)
        return super().embedding(self.scratch[indices.shape], *rest)


CONDITION_FAULTS = faults_of(__name__, SoundLinear)
