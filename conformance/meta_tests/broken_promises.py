"""Linears that break a promise in one way each: about memory, the protocol, bounded numerics or variants."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from broken_backends import as_if_contiguous, faults_of
from broken_linears import BoundedLinear
from sound_linear import SoundLinear

from bittensor import PreparedWeight, QuantizedWeight

Tensor = torch.Tensor


# Memory and the protocol


class LinearIgnoresStrideOfX(SoundLinear):
    def linear(self, x: Tensor, *rest: Any) -> Tensor:
        return super().linear(as_if_contiguous(x), *rest)


class LinearWritesToX(SoundLinear):
    def linear(self, x: Tensor, *rest: Any) -> Tensor:
        result = super().linear(x, *rest)
        x[x.isnan()] = 0.0
        return result


class ReadsPastThePreparedWeight(SoundLinear):
    def linear(self, x: Tensor, weight: PreparedWeight, *rest: Any) -> Tensor:
        last = weight.tensors[-1]
        if last.is_contiguous():
            ctypes.string_at(last.data_ptr() + last.numel() * last.element_size(), 1)
        return super().linear(x, weight, *rest)


class ReadsPastThePreparedWeightForGradients(SoundLinear):
    def linear_input_grad(self, dy: Tensor, weight: PreparedWeight) -> Tensor:
        last = weight.tensors[-1]
        ctypes.string_at(last.data_ptr() + last.numel() * last.element_size(), 1)
        return super().linear_input_grad(dy, weight)


class GradientTakesAnyLayout(SoundLinear):
    def linear_input_grad(self, dy: Tensor, weight: PreparedWeight) -> Tensor:
        return super().linear_input_grad(dy, replace(weight, layout="canonical"))


class ComputesUndeclaredGradients(SoundLinear):
    capabilities = replace(
        SoundLinear.capabilities, operations=SoundLinear.capabilities.operations - {"linear_input_grad"}
    )


class GradientSharesScratch(SoundLinear):
    """Keeps dy, by its shape, where another thread's call of the same shape overwrites it."""

    scratch: ClassVar[dict[torch.Size, Tensor]] = {}

    def gradient(self, dy: Tensor, values: Tensor) -> Tensor:
        self.scratch[dy.shape] = dy
        time.sleep(0.002)
        return super().gradient(self.scratch[dy.shape], values)


class _Reusing(SoundLinear):
    def __init__(self) -> None:
        self.buffers: dict[tuple[torch.Size, torch.dtype], Tensor] = {}

    def reuse(self, result: Tensor) -> Tensor:
        buffer = self.buffers.setdefault((result.shape, result.dtype), torch.empty_like(result))
        return buffer.copy_(result)


class LinearReusesItsResult(_Reusing):
    def linear(self, *arguments: Any) -> Tensor:
        return self.reuse(super().linear(*arguments))


class GradientReusesItsResult(_Reusing):
    def linear_input_grad(self, *arguments: Any) -> Tensor:
        return self.reuse(super().linear_input_grad(*arguments))


class TakesABiasInsideXForNone(SoundLinear):
    def linear(self, x: Tensor, weight: PreparedWeight, bias: Tensor | None, *rest: Any) -> Tensor:
        inside = bias is not None and bias.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        return super().linear(x, weight, None if inside else bias, *rest)


class WearsItsWeightOut(SoundLinear):
    """Rounds the scales of a prepared weight when it is used."""

    def prepare(self, weight: QuantizedWeight) -> PreparedWeight:
        canonical = super().prepare(weight)
        return replace(canonical, tensors=tuple(tensor.clone() for tensor in canonical.tensors))

    def linear(self, x: Tensor, weight: PreparedWeight, *rest: Any) -> Tensor:
        result = super().linear(x, weight, *rest)
        weight.tensors[1].copy_(weight.tensors[1].bfloat16())
        return result


class BackwardForgetsTheEpilogue(SoundLinear):
    """Has a gradient of its own, as a backend with operators does: that of a linear without an epilogue."""

    capabilities = replace(SoundLinear.capabilities, operators=True, checks_arguments=True)

    def linear(self, x: Tensor, weight: PreparedWeight, bias: Tensor | None, mode: str, epilogue: str | None) -> Tensor:
        sound, compute = self, super().linear

        class Product(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor, bias: Tensor | None) -> Tensor:
                return compute(x, weight, bias, mode, epilogue)

            @staticmethod
            def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, Tensor]:
                rows = dy[0].reshape(-1, dy[0].shape[-1])
                return sound.linear_input_grad(dy[0], weight), rows.sum(dim=0).float()

        result: Tensor = Product.apply(x, bias)
        return result


# Bounded numerics


class BoundedWithCoarseActivations(BoundedLinear):
    """Codes of -31..31."""

    def round(self, values: Tensor) -> Tensor:
        return torch.round(values / 4) * 4


class BoundedNanLeaks(BoundedLinear):
    def mark(self, y: Tensor, finite: Tensor) -> Tensor:
        return torch.where(finite.all(), y, 0.0)


class BoundedHidesNan(BoundedLinear):
    def mark(self, y: Tensor, finite: Tensor) -> Tensor:
        return y.nan_to_num(0.0, 0.0, 0.0)


class BoundedDependsOnThreads(BoundedLinear):
    def mark(self, y: Tensor, finite: Tensor) -> Tensor:
        return y * (1 + (torch.get_num_threads() == 3))


class BoundedTailRowsOff(BoundedLinear):
    def mark(self, y: Tensor, finite: Tensor) -> Tensor:
        y[len(y) // 4 * 4 :] *= 2
        return y


class _LinearVariant(SoundLinear):
    capabilities = replace(SoundLinear.capabilities, variants=("fast",))
    kernel = "linear_fast"

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def linear(self, *arguments: Any) -> Tensor:
        self.calls[self.kernel] = self.calls.get(self.kernel, 0) + 1
        return super().linear(*arguments)

    def variant(self, name: str) -> _LinearVariant:
        variant = type(self)()
        variant.is_fast = True
        return variant

    is_fast = False

    def kernel_calls(self) -> Mapping[str, int]:
        return dict(self.calls)


class OwnLinearKernels(_LinearVariant):
    """A control: the variant does as it says."""

    def linear_input_grad(self, *arguments: Any) -> Tensor:
        self.calls["gradient_fast"] = self.calls.get("gradient_fast", 0) + 1
        return super().linear_input_grad(*arguments)


class LinearBorrowsKernels(_LinearVariant):
    kernel = "linear_slow"


class GradientBorrowsKernels(_LinearVariant):
    def linear_input_grad(self, *arguments: Any) -> Tensor:
        self.calls["gradient_slow"] = self.calls.get("gradient_slow", 0) + 1
        return super().linear_input_grad(*arguments)


class FloatDiffersOnTheVariant(_LinearVariant):
    def float(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        return super().float(x, weight, codes) * (1 + 2.0**-22 * self.is_fast)


PROMISE_FAULTS = faults_of(__name__, SoundLinear)
