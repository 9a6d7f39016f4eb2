"""Operations of section 8 that are wrong in one way each. The suite must reject every one of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from broken_backends import as_if_contiguous, faults_of
from sound_linear import SoundLinear

from bittensor.convolution import ConvolutionGeometry
from bittensor.fused import (
    KEY_PANEL,
    ComposedOperations,
    DecoderLayers,
    FusedOperations,
    decode_by_layer,
    rotate,
)
from bittensor.prepared_weight import PreparedWeight

Tensor = torch.Tensor


class TokenByToken(FusedOperations):
    """Nothing is wrong with them: token by token in float64, so that it does not matter what a token comes with."""

    def __init__(self, backend: SoundLinear) -> None:
        self.backend = backend

    def linear(
        self,
        x: Tensor,
        weight: PreparedWeight,
        activation_mode: str,
        norm: tuple[Tensor, float] | None = None,
        gated: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:
        if norm is not None:
            x = torch.stack([self.normalize(row.double(), *norm).float() for row in x])
        if gated:
            x = self.gate(*x.double().chunk(2, dim=-1)).float()
        y = self.backend.linear(x, weight, None, activation_mode, None)
        return y if residual is None else self.add(residual, y)

    def normalize(self, row: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return row / (row.square().mean() + epsilon).sqrt() * weight

    def gate(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    def add(self, residual: Tensor, y: Tensor) -> Tensor:
        return residual + y

    def feed_forward(
        self,
        x: Tensor,
        up: PreparedWeight,
        up_bias: Tensor | None,
        epilogue: str | None,
        down: PreparedWeight,
        down_bias: Tensor | None,
        activation_mode: str,
    ) -> Tensor:
        hidden = self.hidden(self.backend.linear(x, up, up_bias, activation_mode, epilogue))
        return self.backend.linear(hidden, down, down_bias, activation_mode, None)

    def hidden(self, values: Tensor) -> Tensor:
        return values

    def attend(
        self,
        projections: Tensor,
        rotation: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        position: int,
        heads: int,
    ) -> Tensor:
        shared, _, size, _ = keys.shape
        split = projections.view(len(projections), heads + 2 * shared, size)
        turned = rotate(split[:, : heads + shared].transpose(0, 1), *rotation).transpose(0, 1)
        mixed = []
        for t in range(len(split)):
            at = self.place(position, t)
            keys[:, at // KEY_PANEL, :, at % KEY_PANEL] = self.held_key(
                turned[t, heads:], split[t, heads : heads + shared]
            )
            values[:, at, :size] = split[t, heads + shared :]
        for t in range(len(split)):
            seen = self.visible(position + t, position + len(split))
            held = keys.transpose(2, 3).reshape(shared, -1, size)[:, :seen]
            mixed.append(self.mix(turned[t, :heads], held, values[:, :seen, :size], size**-0.5, position + t + 1))
        return self.finish(torch.stack(mixed))

    def place(self, position: int, t: int) -> int:
        return position + t

    def held_key(self, turned: Tensor, plain: Tensor) -> Tensor:
        return turned

    def visible(self, at: int, end: int) -> int:
        return at + 1

    def head_of(self, head: int, heads: int, shared: int) -> int:
        return head * shared // heads

    def finish(self, rows: Tensor) -> Tensor:
        return rows

    def mix(self, query: Tensor, key: Tensor, value: Tensor, scale: float, count: int) -> Tensor:
        """Heads of one token ``[heads, size]`` over ``[key_value_heads, S, size]``, the first `count` of them."""
        mixed = []
        for head, row in enumerate(query.double()):
            shared = self.head_of(head, len(query), len(key))
            scores = (key[shared, :count].double() @ row) * scale
            if not bool(scores.isfinite().all()):
                scores = torch.full_like(scores, float("nan"))
            mixed.append(scores.softmax(0) @ value[shared, :count].double())
        return torch.cat(mixed).float()

    def attend_bidirectional(
        self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float
    ) -> Tensor:
        rows = []
        for i, tokens in enumerate(query.transpose(1, 2)):
            seen = torch.ones(key.shape[2], dtype=torch.bool) if key_mask is None else key_mask[i]
            held = self.seen_of(key[i], seen), self.seen_of(value[i], seen)
            for token in tokens:
                if bool(seen.any()):
                    rows.append(self.mix(token, *held, scale, held[0].shape[1]))
                else:
                    rows.append(self.of_nothing(token))
        return torch.stack(rows).view(len(query), query.shape[2], -1)

    def seen_of(self, vectors: Tensor, seen: Tensor) -> Tensor:
        return vectors[:, seen]

    def of_nothing(self, token: Tensor) -> Tensor:
        return torch.zeros(token.numel())

    def conv2d(
        self,
        images: Tensor,
        weight: PreparedWeight,
        bias: Tensor | None,
        geometry: ConvolutionGeometry,
        activation_mode: str,
        epilogue: str | None,
    ) -> Tensor:
        return ComposedOperations(self.backend).conv2d(images, weight, bias, geometry, activation_mode, epilogue)

    def decode(
        self,
        x: Tensor,
        layers: DecoderLayers,
        rotation: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        position: int,
        heads: int,
    ) -> Tensor:
        return decode_by_layer(self, x, layers, rotation, keys, values, position, heads)


class SoundOperations(SoundLinear):
    """The control."""

    Operations: ClassVar[type[TokenByToken]] = TokenByToken

    def fused(self) -> FusedOperations:
        return self.Operations(self)


# Before and after the linear


class NormWithoutEpsilon(SoundOperations):
    class Operations(TokenByToken):
        def normalize(self, row: Tensor, weight: Tensor, epsilon: float) -> Tensor:
            return super().normalize(row, weight, 0.0)


class NormOfTheSum(SoundOperations):
    """LayerNorm's habit: it takes the mean away first."""

    class Operations(TokenByToken):
        def normalize(self, row: Tensor, weight: Tensor, epsilon: float) -> Tensor:
            return super().normalize(row - row.mean(), weight, epsilon)


class GateAndUpSwapped(SoundOperations):
    class Operations(TokenByToken):
        def gate(self, gate: Tensor, up: Tensor) -> Tensor:
            return super().gate(up, gate)


class ForgetsTheResidual(SoundOperations):
    class Operations(TokenByToken):
        def add(self, residual: Tensor, y: Tensor) -> Tensor:
            return y


# Two linears in one step


class FeedForwardWithoutTheEpilogue(SoundOperations):
    class Operations(TokenByToken):
        def feed_forward(
            self, x: Tensor, up: PreparedWeight, up_bias: Tensor | None, epilogue: str | None, *rest: Any
        ) -> Tensor:
            return super().feed_forward(x, up, up_bias, None, *rest)


class HiddenValuesInHalfPrecision(SoundOperations):
    class Operations(TokenByToken):
        def hidden(self, values: Tensor) -> Tensor:
            return values.bfloat16().to(values.dtype)


class HiddenValuesKeepTheirPrecision(SoundOperations):
    """They are not rounded to the dtype of x."""

    class Operations(TokenByToken):
        def feed_forward(self, x: Tensor, *rest: Any) -> Tensor:
            return super().feed_forward(x.float(), *rest).to(x.dtype)


# Attention


class LooksAhead(SoundOperations):
    """A token sees those that came with it."""

    class Operations(TokenByToken):
        def mix(self, query: Tensor, key: Tensor, value: Tensor, scale: float, count: int) -> Tensor:
            return super().mix(query, key, value, scale, key.shape[1])

        def visible(self, at: int, end: int) -> int:
            return end


class KeepsPlainKeys(SoundOperations):
    class Operations(TokenByToken):
        def held_key(self, turned: Tensor, plain: Tensor) -> Tensor:
            return plain


class ForgetsThePosition(SoundOperations):
    """New tokens overwrite the first ones of the cache."""

    class Operations(TokenByToken):
        def place(self, position: int, t: int) -> int:
            return t


class SharesHeadsInTurn(SoundOperations):
    class Operations(TokenByToken):
        def head_of(self, head: int, heads: int, shared: int) -> int:
            return head % shared


class MultipliesTheFuture(SoundOperations):
    """What is not seen has the weight 0, and is multiplied."""

    class Operations(TokenByToken):
        def visible(self, at: int, end: int) -> int:
            return end

        def mix(self, query: Tensor, key: Tensor, value: Tensor, scale: float, count: int) -> Tensor:
            return super().mix(query, key, value, scale, count) + 0.0 * value.sum()


class DependsOnThePieces(SoundOperations):
    class Operations(TokenByToken):
        def finish(self, rows: Tensor) -> Tensor:
            return rows * (1 + 2.0**-22 * (len(rows) > 1))


class PaddingIsSeen(SoundOperations):
    class Operations(TokenByToken):
        def seen_of(self, vectors: Tensor, seen: Tensor) -> Tensor:
            return vectors


class PaddingIsZero(SoundOperations):
    """Keys of padding are zeros, and take their share."""

    class Operations(TokenByToken):
        def seen_of(self, vectors: Tensor, seen: Tensor) -> Tensor:
            return vectors.where(seen[:, None], 0.0)


class NothingSeenIsNan(SoundOperations):
    class Operations(TokenByToken):
        def of_nothing(self, token: Tensor) -> Tensor:
            return torch.full((token.numel(),), float("nan"))


class ScalesByTheSize(SoundOperations):
    """Takes no scale but its own."""

    class Operations(TokenByToken):
        def mix(self, query: Tensor, key: Tensor, value: Tensor, scale: float, count: int) -> Tensor:
            return super().mix(query, key, value, query.shape[-1] ** -0.5, count)


class DependsOnTheBatch(SoundOperations):
    class Operations(TokenByToken):
        def attend_bidirectional(
            self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float
        ) -> Tensor:
            rows = super().attend_bidirectional(query, key, value, key_mask, scale)
            return rows * (1 + 2.0**-22 * (len(query) > 1))


# Layers and kernels


class LayersShareNorms(SoundOperations):
    class Operations(TokenByToken):
        def decode(self, x: Tensor, layers: DecoderLayers, *rest: Any) -> Tensor:
            return super().decode(x, replace(layers, norms=layers.norms[:1].expand_as(layers.norms)), *rest)


class LayersShareTheCache(SoundOperations):
    class Operations(TokenByToken):
        def decode(
            self, x: Tensor, layers: DecoderLayers, rotation: Any, keys: Tensor, values: Tensor, *rest: Any
        ) -> Tensor:
            return super().decode(x, layers, rotation, keys[:1].expand_as(keys), values, *rest)


class LayersShareWeights(SoundOperations):
    class Operations(TokenByToken):
        def decode(self, x: Tensor, layers: DecoderLayers, *rest: Any) -> Tensor:
            return super().decode(x, replace(layers, weights=layers.weights[:1] * len(layers.weights)), *rest)


# Large scores, and threads of the caller


class ExponentialsOverflow(SoundOperations):
    """Of the scores themselves, and not of how far they are below the largest."""

    class Operations(TokenByToken):
        def attend_bidirectional(
            self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float
        ) -> Tensor:
            rows = super().attend_bidirectional(query, key, value, key_mask, scale)
            largest = (query.unflatten(1, (key.shape[1], -1)) @ key.transpose(-1, -2)[:, :, None]).max() * scale
            return rows.fill_(torch.nan) if largest > 88 else rows


class AttentionSharesScratch(SoundOperations):
    class Operations(TokenByToken):
        scratch: ClassVar[dict[torch.Size, Tensor]] = {}

        def attend_bidirectional(self, query: Tensor, *rest: Any) -> Tensor:
            self.scratch[query.shape] = query
            time.sleep(0.002)
            return super().attend_bidirectional(self.scratch[query.shape], *rest)


# Convolutions


class ConvolutionForgetsTheBias(SoundOperations):
    class Operations(TokenByToken):
        def conv2d(self, images: Tensor, weight: PreparedWeight, bias: Tensor | None, *rest: Any) -> Tensor:
            return super().conv2d(images, weight, None, *rest)


class ConvolutionIgnoresStrides(SoundOperations):
    class Operations(TokenByToken):
        def conv2d(self, images: Tensor, *rest: Any) -> Tensor:
            return super().conv2d(as_if_contiguous(images), *rest)


class ConvolutionReusesItsResult(SoundOperations):
    class Operations(TokenByToken):
        buffers: ClassVar[dict[tuple[torch.Size, torch.dtype], Tensor]] = {}

        def conv2d(self, *arguments: Any) -> Tensor:
            result = super().conv2d(*arguments)
            return self.buffers.setdefault((result.shape, result.dtype), torch.empty_like(result)).copy_(result)


class _OperationsVariant(SoundOperations):
    capabilities = replace(SoundOperations.capabilities, variants=("fast",))

    def __init__(self) -> None:
        self.calls = 0

    def linear(self, *arguments: Any) -> Tensor:
        self.calls += 1
        return super().linear(*arguments)

    def variant(self, name: str) -> _OperationsVariant:
        variant = type(self)()
        variant.is_fast = True
        return variant

    is_fast = False

    def kernel_calls(self) -> Mapping[str, int]:
        return {"linear_fast": self.calls}


class OwnOperationKernels(_OperationsVariant):
    """A control: the variant does as it says."""


class OperationsBorrowKernels(_OperationsVariant):
    def kernel_calls(self) -> Mapping[str, int]:
        return {"linear_fast": self.calls, "linear_slow": self.calls // 2}


class AttentionDiffersOnTheVariant(_OperationsVariant):
    class Operations(TokenByToken):
        def mix(self, query: Tensor, key: Tensor, value: Tensor, scale: float, count: int) -> Tensor:
            mixed = super().mix(query, key, value, scale, count)
            return mixed * (1 + 2.0**-22 * getattr(self.backend, "is_fast", False))


OPERATION_FAULTS = faults_of(__name__, SoundOperations)
