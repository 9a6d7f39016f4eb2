"""Gradients of the linear, and embeddings, that are wrong in one way each. The suite must reject every one of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from broken_backends import as_if_contiguous, faults_of
from sound_linear import SoundLinear

from bittensor import PreparedWeight, QuantizedWeight

Tensor = torch.Tensor


# The gradient


class GradientOfPreviousGroupsScale(SoundLinear):
    def gradient_group(self, group: int) -> int:
        return max(group - 1, 0)


class GradientTailDropped(SoundLinear):
    """The columns beyond the last eight."""

    def gradient(self, dy: Tensor, values: Tensor) -> Tensor:
        dx = super().gradient(dy, values)
        dx[:, dx.shape[1] // 8 * 8 :] = 0
        return dx


class GradientDropsLastRows(SoundLinear):
    """The rows of the weight beyond the last sixteen."""

    def gradient(self, dy: Tensor, values: Tensor) -> Tensor:
        whole = max(len(values) // 16 * 16, 1)
        return super().gradient(dy[:, :whole], values[:whole])


class GradientWithoutOffset(SoundLinear):
    def gradient_offset(self, offset: Tensor) -> Tensor:
        return offset * 0


class GradientSymmetricZeroOffByOne(SoundLinear):
    def gradient_zero(self, weight: QuantizedWeight, group: int) -> Tensor:
        return super().gradient_zero(weight, group) - float(weight.zero == "symmetric")


class GradientInBfloat16(SoundLinear):
    def gradient(self, dy: Tensor, values: Tensor) -> Tensor:
        return super().gradient(dy.bfloat16(), values.bfloat16()).bfloat16().float()


class GradientDependsOnTheBatch(SoundLinear):
    def gradient(self, dy: Tensor, values: Tensor) -> Tensor:
        return super().gradient(dy, values) * (1 + 2.0**-22 * (len(dy) > 4))


class GradientNanLeaks(SoundLinear):
    def gradient(self, dy: Tensor, values: Tensor) -> Tensor:
        return super().gradient(dy, values) + dy.float().sum() * 0


class GradientOfInfinityIsNan(SoundLinear):
    def gradient(self, dy: Tensor, values: Tensor) -> Tensor:
        dx = super().gradient(dy, values)
        return dx.where(dx.isfinite(), torch.nan)


class GradientOfOneValueForAll(SoundLinear):
    """Misreads a dy without strides, as `sum` makes it."""

    def linear_input_grad(self, dy: Tensor, weight: PreparedWeight) -> Tensor:
        return super().linear_input_grad(dy if any(dy.stride()) else as_if_contiguous(dy), weight)


class GradientIgnoresStride(SoundLinear):
    def linear_input_grad(self, dy: Tensor, weight: PreparedWeight) -> Tensor:
        return super().linear_input_grad(as_if_contiguous(dy), weight)


# The embedding


class EmbeddingOfTheFirstTile(SoundLinear):
    """Rows from the seventeenth on are those of the first sixteen."""

    def embedding(self, indices: Tensor, weight: PreparedWeight, dtype: torch.dtype) -> Tensor:
        return super().embedding(indices % 16, weight, dtype)


class EmbeddingOfIndicesIn16Bits(SoundLinear):
    def embedding(self, indices: Tensor, weight: PreparedWeight, dtype: torch.dtype) -> Tensor:
        return super().embedding(indices % 2**16, weight, dtype)


class EmbeddingCastsBeforeTheOffset(SoundLinear):
    def embedding(self, indices: Tensor, weight: PreparedWeight, dtype: torch.dtype) -> Tensor:
        if weight.form.zero != "float":
            return super().embedding(indices, weight, dtype)
        words, scales, offsets = weight.tensors
        product = super().embedding(indices, replace(weight, tensors=(words, scales, offsets * 0)), dtype)
        group = torch.arange(weight.form.shape[1]) // weight.form.group_size
        return (product.float() + offsets.float()[indices.long()][..., group]).to(dtype)


class EmbeddingIgnoresStride(SoundLinear):
    def embedding(self, indices: Tensor, weight: PreparedWeight, dtype: torch.dtype) -> Tensor:
        return super().embedding(as_if_contiguous(indices) % weight.form.shape[0], weight, dtype)


class EmbeddingTakesIndicesFromTheEnd(SoundLinear):
    """As indices of Python and of torch: -1 is the last row."""

    capabilities = replace(SoundLinear.capabilities, checks_arguments=True)

    def embedding(self, indices: Tensor, weight: PreparedWeight, dtype: torch.dtype) -> Tensor:
        return super().embedding(indices.where(indices >= 0, indices + weight.form.shape[0]), weight, dtype)


GRADIENT_FAULTS = faults_of(__name__, SoundLinear)
