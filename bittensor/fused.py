"""Operations around `linear`, of transformers and convolutions, which a backend may compute in one step.

`ComposedOperations` says what they are, in torch and the backend's own `linear`. A backend with kernels for them
returns its own from `Backend.fused`; docs/numerics.md, section 8, says what those must have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F

from .convolution import ConvolutionGeometry, composed_conv2d
from .prepared_weight import PreparedWeight

if TYPE_CHECKING:
    from .backend import Backend

KEY_PANEL = 64
"""Tokens in a panel of the cache of keys."""

VALUE_UNIT = 16
"""Rows of the cache of values are padded with zeros to a multiple of this."""


def cache_shapes(key_value_heads: int, capacity: int, head_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the keys and the values of one layer: float32, zeros before the first use.

    Keys lie in panels ``[key_value_heads, ceil(capacity / 64), head_size, 64]``, so that one load brings a component of
    several tokens. Values are ``[key_value_heads, capacity, ceil(head_size / 16) * 16]``.

    >>> cache_shapes(3, 100, 24)
    ((3, 2, 24, 64), (3, 100, 32))
    """
    padded = -(-head_size // VALUE_UNIT) * VALUE_UNIT
    return (key_value_heads, -(-capacity // KEY_PANEL), head_size, KEY_PANEL), (key_value_heads, capacity, padded)


@dataclass(frozen=True)
class DecoderLayers:
    """Weights of the layers of a decoder, for rows of `width` values.

    Attributes:
        norms: weights of the RMSNorm before the attention and of that before the MLP, float32 ``[layers, 2, width]``.
        epsilon: of both.
        weights: of each layer those of the queries, keys and values together, of the output of the attention, of gate
            and up together, and of down.
        activation_mode: of all linears.
    """

    norms: torch.Tensor
    epsilon: float
    weights: tuple[tuple[PreparedWeight, PreparedWeight, PreparedWeight, PreparedWeight], ...]
    activation_mode: str

    @cached_property
    def tensors(self) -> list[torch.Tensor]:
        """Of all weights, one layer after the other."""
        return [tensor for layer in self.weights for weight in layer for tensor in weight.tensors]


class FusedOperations(Protocol):
    """What modules call beside `bittensor.linear`, for inference."""

    def linear(
        self,
        x: torch.Tensor,
        weight: PreparedWeight,
        activation_mode: str,
        norm: tuple[torch.Tensor, float] | None = None,
        gated: bool = False,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``residual + linear(f(x), weight)``, x float ``[..., K]`` to ``[..., N]`` of its dtype.

        f is RMSNorm where `norm` is its weight, float32 ``[K]``, and epsilon; it is ``silu(gate) * up`` where `gated`,
        with x ``[..., 2 K]``, gate before up; otherwise nothing. `residual` has the shape and dtype of the result.
        """
        ...

    def feed_forward(
        self,
        x: torch.Tensor,
        up: PreparedWeight,
        up_bias: torch.Tensor | None,
        epilogue: str | None,
        down: PreparedWeight,
        down_bias: torch.Tensor | None,
        activation_mode: str,
    ) -> torch.Tensor:
        """``linear(epilogue(linear(x, up, up_bias)), down, down_bias)``, with the bits of these linears.

        Args:
            x: float ``[..., K]``.
            up: ``[H, K]``, and its bias ``[H]`` or None.
            epilogue: as in `bittensor.linear`. What it gives is rounded to the dtype of x.
            down: ``[N, H]``, and its bias ``[N]`` or None.
            activation_mode: of both linears.

        Returns:
            ``[..., N]`` of the dtype of x.
        """
        ...

    def attend(
        self,
        projections: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        keys: torch.Tensor,
        values: torch.Tensor,
        position: int,
        heads: int,
    ) -> torch.Tensor:
        """Causal attention of T new tokens that follow `position` tokens of one sequence.

        Args:
            projections: float32 ``[T, (heads + 2 key_value_heads) * size]``: queries, keys, values of all heads.
            rotation: cosines and sines of the angles by which value i and value i + size/2 of queries and keys turn,
                float32 ``[T, size]`` each.
            keys, values: the cache as `cache_shapes` has it, which takes in the new tokens. It must have room.
            position: tokens that it holds before.
            heads: of the queries; so many in a row as key_value_heads goes into them share keys and values.

        Returns:
            float32 ``[T, heads * size]``.
        """
        ...

    def attend_bidirectional(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_mask: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """Attention of every token of a sequence to every token: ``softmax(scale * query @ key.T) @ value``.

        Args:
            query: float32 ``[B, heads, T, size]``, of any strides.
            key, value: float32 ``[B, key_value_heads, S, size]``; so many heads of the query in a row as
                key_value_heads goes into them share keys and values.
            key_mask: bool ``[B, S]``, False where a key is not seen, or None.
            scale: of the scores.

        Returns:
            float32 ``[B, T, heads * size]``; 0 where no key is seen.
        """
        ...

    def conv2d(
        self,
        images: torch.Tensor,
        weight: PreparedWeight,
        bias: torch.Tensor | None,
        geometry: ConvolutionGeometry,
        activation_mode: str,
        epilogue: str | None,
    ) -> torch.Tensor:
        """The linear of patches (docs/numerics.md, section 10), with its bits.

        Images are float ``[B, H, W, channels]``, the result ``[B, H', W', out_channels]`` of their dtype. The weight is
        ``[out_channels, kernel height * kernel width * channels / groups]``; its rows go through the groups.
        """
        ...

    def decode(
        self,
        x: torch.Tensor,
        layers: DecoderLayers,
        rotation: tuple[torch.Tensor, torch.Tensor],
        keys: torch.Tensor,
        values: torch.Tensor,
        position: int,
        heads: int,
    ) -> torch.Tensor:
        """All layers for T new tokens that follow `position` tokens of one sequence: `decode_by_layer` in one step.

        Args:
            x: float32 ``[T, width]``.
            layers: their weights.
            rotation, position, heads: as in `attend`.
            keys, values: as in `attend`, with the layers in a leading dimension.

        Returns:
            float32 ``[T, width]``.
        """
        ...


class ComposedOperations(FusedOperations):
    """The operations, composed of torch's and of the `linear` of a backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def linear(
        self,
        x: torch.Tensor,
        weight: PreparedWeight,
        activation_mode: str,
        norm: tuple[torch.Tensor, float] | None = None,
        gated: bool = False,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        def product(rows: torch.Tensor) -> torch.Tensor:
            return self._backend.linear(rows, weight, None, activation_mode, None)

        return composed_linear(product, x, norm, gated, residual)

    def feed_forward(
        self,
        x: torch.Tensor,
        up: PreparedWeight,
        up_bias: torch.Tensor | None,
        epilogue: str | None,
        down: PreparedWeight,
        down_bias: torch.Tensor | None,
        activation_mode: str,
    ) -> torch.Tensor:
        hidden = self._backend.linear(x, up, up_bias, activation_mode, epilogue)
        return self._backend.linear(hidden, down, down_bias, activation_mode, None)

    def attend(
        self,
        projections: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        keys: torch.Tensor,
        values: torch.Tensor,
        position: int,
        heads: int,
    ) -> torch.Tensor:
        shared_heads, _, size, _ = keys.shape
        count = len(projections)
        split = projections.view(count, heads + 2 * shared_heads, size).transpose(0, 1)
        turned = rotate(split[: heads + shared_heads], *rotation)
        queries, at = turned[None, :heads], torch.arange(position, position + count, device=turned.device)
        keys.transpose(2, 3)[:, at // KEY_PANEL, at % KEY_PANEL] = turned[heads:]
        values[:, position : position + count, :size] = split[heads + shared_heads :]
        end = position + count
        all_keys = keys.transpose(2, 3).reshape(1, shared_heads, -1, size)[:, :, :end]
        all_values = values[None, :, :end, :size]
        if count == 1:
            mixed = attend_once(queries, all_keys, all_values)
        else:
            mask = None if position == 0 else torch.arange(end, device=at.device) <= at[:, None]
            mixed = F.scaled_dot_product_attention(
                queries, all_keys, all_values, mask, is_causal=mask is None, enable_gqa=True
            )
        return mixed[0].transpose(0, 1).reshape(count, -1)

    def attend_bidirectional(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_mask: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        mask = None if key_mask is None else key_mask[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True)
        if mask is not None:
            mixed = mixed.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)
        return mixed.transpose(1, 2).flatten(2)

    def conv2d(
        self,
        images: torch.Tensor,
        weight: PreparedWeight,
        bias: torch.Tensor | None,
        geometry: ConvolutionGeometry,
        activation_mode: str,
        epilogue: str | None,
    ) -> torch.Tensor:
        def product(patches: torch.Tensor) -> torch.Tensor:
            return self._backend.linear(patches, weight, bias, activation_mode, epilogue)

        return composed_conv2d(product, images, geometry)

    def decode(
        self,
        x: torch.Tensor,
        layers: DecoderLayers,
        rotation: tuple[torch.Tensor, torch.Tensor],
        keys: torch.Tensor,
        values: torch.Tensor,
        position: int,
        heads: int,
    ) -> torch.Tensor:
        return decode_by_layer(self, x, layers, rotation, keys, values, position, heads)


def decode_by_layer(
    fused: FusedOperations,
    x: torch.Tensor,
    layers: DecoderLayers,
    rotation: tuple[torch.Tensor, torch.Tensor],
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
    heads: int,
) -> torch.Tensor:
    """`FusedOperations.decode` by the other operations: attention, then SwiGLU, each on normalized input and added."""
    mode, epsilon = layers.activation_mode, layers.epsilon
    for norms, weights, layer_keys, layer_values in zip(layers.norms, layers.weights, keys, values, strict=True):
        query_key_value, output, gate_up, down = weights
        projections = fused.linear(x, query_key_value, mode, norm=(norms[0], epsilon))
        mixed = fused.attend(projections, rotation, layer_keys, layer_values, position, heads)
        x = fused.linear(mixed, output, mode, residual=x)
        gates = fused.linear(x, gate_up, mode, norm=(norms[1], epsilon))
        x = fused.linear(gates, down, mode, gated=True, residual=x)
    return x


def composed_linear(
    product: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    norm: tuple[torch.Tensor, float] | None,
    gated: bool,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """`FusedOperations.linear` around any product."""
    if norm is not None:
        weight, epsilon = norm
        x = F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), epsilon)
    if gated:
        gate, up = x.chunk(2, dim=-1)
        x = F.silu(gate) * up
    y = product(x)
    return y if residual is None else residual + y


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of ``[heads, T, size]``: value i and value i + size/2 turn by the angle of ``[T, size]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend_once(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of one token: queries ``[1, heads, 1, size]``, keys and values ``[1, key_value_heads, T, size]``.

    Written out, because for few queries torch's own function shares out the keys to its threads, so that the sum would
    depend on their number. The heads that share keys are rows of one product.
    """
    size = queries.shape[-1]
    shared = queries.reshape(keys.shape[1], -1, size) * size**-0.5
    shares = torch.bmm(shared, keys[0].transpose(1, 2)).softmax(dim=-1)
    return torch.bmm(shares, values[0]).reshape(queries.shape)
