"""Linears that are wrong in one way each. The suite must reject every one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from bittensor_reference import ReferenceBackend
from broken_backends import faults_of
from sound_linear import SoundLinear, Sums

from bittensor import PreparedWeight, QuantizedWeight
from bittensor.backend import OPERATIONS, Capabilities

Tensor = torch.Tensor


class NarrowLinear(SoundLinear):
    """A control: declares little of what there is, and is right there."""

    capabilities = Capabilities(
        operations=frozenset(OPERATIONS),
        linear_bits=frozenset({4}),
        zero_kinds=frozenset({"integer"}),
        scale_dtypes=frozenset({torch.float32}),
        activation_modes=frozenset({"int8"}),
        epilogues=frozenset({None}),
    )


class BoundedLinear(SoundLinear):
    """A control: right, and promises less than that."""

    capabilities = replace(SoundLinear.capabilities, numerics="bounded")


class BoundedByFloats(BoundedLinear):
    """A control: does not round activations at all, which is nearer than the contract asks."""

    def int8(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        return self.float(x, weight, codes)


# Preparing


class SwapsNibblesInPrepare(SoundLinear):
    def prepare_words(self, codes: Tensor, bits: int) -> Tensor:
        return super().prepare_words(_swapped(codes), bits)


class SwapsNibblesAndSwapsBack(SwapsNibblesInPrepare):
    """What is restored is right; what is computed with is not."""

    def restore(self, weight: PreparedWeight) -> QuantizedWeight:
        words, *rest = weight.tensors
        codes = _swapped(ReferenceBackend().unpack(words, weight.form.shape[1], weight.form.bits))
        return super().restore(replace(weight, tensors=(ReferenceBackend().pack(codes, weight.form.bits), *rest)))


def _swapped(codes: Tensor) -> Tensor:
    even, swapped = codes.shape[-1] // 2 * 2, codes.clone()
    swapped[..., 0:even:2], swapped[..., 1:even:2] = codes[..., 1:even:2], codes[..., 0:even:2]
    return swapped


class RestoresWordsWithGarbage(SoundLinear):
    capabilities = replace(SoundLinear.capabilities, layout="sound/1")

    def prepare(self, weight: QuantizedWeight) -> PreparedWeight:
        return replace(weight.canonical(), layout="sound/1")

    def restore(self, weight: PreparedWeight) -> QuantizedWeight:
        return super().restore(replace(weight, layout="canonical"))


class RestoresRoundedScales(SoundLinear):
    """By way of bfloat16, as if every scale had come in it."""

    def restore(self, weight: PreparedWeight) -> QuantizedWeight:
        words, scales, *rest = weight.tensors
        rounded = scales.bfloat16().to(scales.dtype)
        rounded = rounded.where(rounded.isfinite(), scales)
        return super().restore(replace(weight, tensors=(words, rounded, *rest)))


class TakesAnyLayout(SoundLinear):
    def linear(self, x: Tensor, weight: PreparedWeight, *rest: Any) -> Tensor:
        return super().linear(x, replace(weight, layout="canonical"), *rest)


# Groups


class GroupIndexRoundedEarly(SoundLinear):
    """Right for groups of 16 columns and their multiples."""

    def group_of(self, column: int) -> int:
        return column // 16 * 16 // self.form.group_size


class ScalesTransposed(SoundLinear):
    def scales_of(self, grouped: Tensor, group: int) -> Tensor:
        return super().scales_of(grouped.reshape(grouped.shape[::-1]).T, group)


class LastGroupHasScaleOfPrevious(SoundLinear):
    def scales_of(self, grouped: Tensor, group: int) -> Tensor:
        ragged = self.form.shape[1] % self.form.group_size and group == self.form.groups - 1
        return super().scales_of(grouped, group - 1 if ragged and group else group)


class LinearKTailDropped(SoundLinear):
    def columns_of_groups(self) -> list[list[int]]:
        return [columns[: len(columns) // 4 * 4] or columns for columns in super().columns_of_groups()]


class SymmetricZeroOffByOne(SoundLinear):
    def zeros_of(self, weight: QuantizedWeight, group: int) -> Tensor:
        return super().zeros_of(weight, group) - float(weight.zero == "symmetric")


class ZerosOfFirstGroup(SoundLinear):
    def zeros_of(self, weight: QuantizedWeight, group: int) -> Tensor:
        return super().zeros_of(weight, 0)


class UnusedBitsMultiplied(SoundLinear):
    """Multiplies whole words: right as long as their unused bits are 0."""

    def prepare(self, weight: QuantizedWeight) -> PreparedWeight:
        return weight.canonical()

    def dot(self, a: Tensor, codes: Tensor) -> Tensor:
        return super().dot(a, codes) + a.sum(dim=1, keepdim=True) * self.unused

    def codes_of_weight(self, weight: QuantizedWeight) -> Tensor:
        self.unused = self.whole_words(weight)[:, weight.shape[1] :].sum(dim=1)
        return super().codes_of_weight(weight)


# Quantization of activations


class RowHasOneScale(SoundLinear):
    def largest(self, row: Tensor, part: Tensor) -> Tensor:
        return super().largest(row, row)


class LargestValueNotMagnitude(SoundLinear):
    def largest(self, row: Tensor, part: Tensor) -> Tensor:
        return part.amax(dim=1, keepdim=True).abs() if part.shape[1] else super().largest(row, part)

    def round(self, values: Tensor) -> Tensor:
        return super().round(values).clamp(-127, 127)


class RoundsCodesHalfAway(SoundLinear):
    def round(self, values: Tensor) -> Tensor:
        return values.sign() * (values.abs() + 0.5).floor()


class DividesByTheScale(SoundLinear):
    """x / (amax / 127), for x * (127 / amax)."""

    def scaled(self, part: Tensor, amax: Tensor) -> Tensor:
        return part / self.activation_scale(amax)


class ScaleByReciprocal(SoundLinear):
    """amax * (1 / 127), for amax / 127."""

    def activation_scale(self, amax: Tensor) -> Tensor:
        return amax * torch.full_like(amax, 127.0).reciprocal()


class NoSmallestGroup(SoundLinear):
    smallest = 2.0**-120


class LargestOfSubnormals(SoundLinear):
    """Counts as zero only what is zero, and divides by it."""

    smallest = 2.0**-149


# Sums


class SixteenBitPairs(SoundLinear):
    """Adds neighbouring products with saturation at 16 bits, as pmaddubsw does."""

    def dot(self, a: Tensor, codes: Tensor) -> Tensor:
        odd = a.shape[1] % 2
        products = torch.nn.functional.pad(a, (0, odd))[:, None] * torch.nn.functional.pad(codes, (0, odd))
        return products.unflatten(-1, (-1, 2)).sum(-1).clamp(-(2**15), 2**15 - 1).sum(-1)


class AsumMissing(SoundLinear):
    def add_offset(self, total: Tensor, offset: Tensor, z: Tensor) -> Tensor:
        return z


class MultipliesThenAdds(SoundLinear):
    def accumulate(self, z: Tensor, a_scale: Tensor, y: Tensor) -> Tensor:
        return z * a_scale + y


class MultipliesThenAddsGroups(SoundLinear):
    """The same within a group of activations."""

    def scale_sum(self, t: Tensor, w_scale: Tensor, z: Tensor | None) -> Tensor:
        return super().scale_sum(t, w_scale, None) if z is None else t.float() * w_scale + z


class ScalesEveryGroup(SoundLinear):
    """t * (a_scale * w_scale), for the sum of t * w_scale times a_scale."""

    def met(self, weight: QuantizedWeight, sums: Sums, start: int) -> Tensor:
        scaled = {group: (t, total * scale, torch.ones_like(scale)) for group, (t, total, scale) in sums.items()}
        self.a_scale = sums[start][2]
        return super().met(weight, scaled, start)

    def scale_sum(self, t: Tensor, w_scale: Tensor, z: Tensor | None) -> Tensor:
        return super().scale_sum(t, self.a_scale * w_scale, z)

    def accumulate(self, z: Tensor, a_scale: Tensor, y: Tensor) -> Tensor:
        return y + z


class OffsetsFirst(SoundLinear):
    """Adds the offset of a group before its sum."""

    def met(self, weight: QuantizedWeight, sums: Sums, start: int) -> Tensor:
        if weight.offsets is None:
            return super().met(weight, sums, start)
        z = torch.zeros(())
        for group in range(start, min(start + self.groups_together(), len(sums))):
            t, total, _ = sums[group]
            z = self.add_offset(total, self.scales_of(weight.offsets, group), z)
            z = self.scale_sum(t, self.scales_of(weight.scales, group), z)
        return z


class EveryGroupHasItsOwnScale(SoundLinear):
    """Of activations, also where groups are short: closer, and not what the contract says."""

    def groups_together(self) -> int:
        return 1


class GroupsTogetherByCount(SoundLinear):
    """Two groups of the weight meet one of activations, however short they are."""

    def groups_together(self) -> int:
        return min(super().groups_together(), 2)


class GroupsWithOffsetsTogether(SoundLinear):
    """Groups with float offsets share a scale of activations, too."""

    def groups_together(self) -> int:
        return max(64 // self.form.group_size, 1) if self.form.zero == "float" else super().groups_together()


class GroupsOfBytesTogether(SoundLinear):
    """Groups of 8 bits share a scale of activations, too."""

    def groups_together(self) -> int:
        return max(64 // self.form.group_size, 1) if self.form.bits == 8 else super().groups_together()


class ExactTotals(SoundLinear):
    """Does not round sums beyond 2^24 to float32: closer, and not what the contract says."""

    def scale_sum(self, t: Tensor, w_scale: Tensor, z: Tensor | None) -> Tensor:
        return (t * w_scale.double() + (0.0 if z is None else z.double())).float()


class GroupsDescend(SoundLinear):
    def in_order(self, groups: range) -> range:
        return groups[::-1]


# Rows and the end of a row


class BiasBeforeTheGroups(SoundLinear):
    def start(self, rows: int, weight: QuantizedWeight) -> Tensor:
        zeros = super().start(rows, weight)
        return zeros if self.bias is None else zeros + self.bias.float()

    def add_float_bias(self, y: Tensor, bias: Tensor | None) -> Tensor:
        return y


class NanReachesItsNeighbours(SoundLinear):
    def mark(self, y: Tensor, finite: Tensor) -> Tensor:
        blocks = finite.float().flatten()
        spoiled = (
            torch.stack([blocks[m // 4 * 4 : m // 4 * 4 + 4].amin() for m in range(len(blocks))]) if len(y) else blocks
        )
        return super().mark(y, spoiled.bool()[:, None])


class NanIsZero(SoundLinear):
    def mark(self, y: Tensor, finite: Tensor) -> Tensor:
        return y


class ReluDropsNan(SoundLinear):
    def relu(self, y: Tensor) -> Tensor:
        return torch.where(y > 0, y, 0.0)


class GeluDropsNan(SoundLinear):
    def gelu(self, y: Tensor) -> Tensor:
        return super().gelu(y).nan_to_num(nan=0.0)


class TanhGelu(SoundLinear):
    def gelu(self, y: Tensor) -> Tensor:
        return F.gelu(y, approximate="tanh")


class TanhGeluOfFloats(TanhGelu):
    """The same, for the mode that compares with a bound."""


class TorchsSilu(SoundLinear):
    """The right function with other roundings."""

    def silu(self, y: Tensor) -> Tensor:
        return y / (1 + (-y).exp())


class HardSilu(SoundLinear):
    """The logistic function as a straight line between 0 and 1."""

    def silu(self, y: Tensor) -> Tensor:
        return F.hardswish(y)


class HalfPrecisionSilu(SoundLinear):
    def silu(self, y: Tensor) -> Tensor:
        return super().silu(y.half().float())


class EpilogueBeforeBias(SoundLinear):
    def finish(self, y: Tensor, bias: Tensor | None, epilogue: str | None, dtype: torch.dtype) -> Tensor:
        return self.cast(self.add_float_bias(self.apply(epilogue, y), bias), dtype)


class EpilogueAfterTheCast(SoundLinear):
    def finish(self, y: Tensor, bias: Tensor | None, epilogue: str | None, dtype: torch.dtype) -> Tensor:
        rounded = self.cast(self.add_float_bias(y, bias), dtype)
        return self.cast(self.apply(epilogue, rounded.float()), dtype)


class EpilogueOfFloatsForgotten(SoundLinear):
    """Only the mode "int8" ends with GELU and SiLU."""

    def linear(self, x: Tensor, weight: PreparedWeight, bias: Tensor | None, mode: str, epilogue: str | None) -> Tensor:
        forgotten = mode == "float" and epilogue in ("gelu", "silu")
        return super().linear(x, weight, bias, mode, None if forgotten else epilogue)


class ComputesUndeclaredEpilogues(SoundLinear):
    capabilities = replace(SoundLinear.capabilities, epilogues=frozenset({None, "relu"}), checks_arguments=True)


class Truncates(SoundLinear):
    """To bfloat16, by dropping bits."""

    def cast(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        return (
            y.view(torch.int32).bitwise_and(-(2**16)).view(torch.float32).to(dtype)
            if dtype is torch.bfloat16
            else y.to(dtype)
        )


class LinearTailRowsOff(SoundLinear):
    def mark(self, y: Tensor, finite: Tensor) -> Tensor:
        y[len(y) // 4 * 4 :] *= 1 + 2.0**-23
        return super().mark(y, finite)


# The float mode


class HalfPrecisionProducts(SoundLinear):
    def float(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        return super().float(x.half().float(), weight, codes)


class LeansTowardsZero(SoundLinear):
    """Within the bound, and always on one side."""

    def float(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        return super().float(x, weight, codes) * (1 - 2.0**-21)


class FloatNanLeaks(SoundLinear):
    def float(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        return super().float(x, weight, codes) + (x.sum() * 0)


class FloatReluDropsNan(ReluDropsNan):
    """Only in the float mode."""

    def linear(self, x: Tensor, weight: PreparedWeight, bias: Tensor | None, mode: str, epilogue: str | None) -> Tensor:
        self.mode = mode
        return super().linear(x, weight, bias, mode, epilogue)

    def relu(self, y: Tensor) -> Tensor:
        return super().relu(y) if self.mode == "float" else SoundLinear.relu(self, y)


class FloatSkipsScalesOfZero(SoundLinear):
    """An output without a scale is 0, whatever x holds."""

    def float(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        scaled = (weight.scales != 0).any(dim=1) | (weight.zero == "float")
        return super().float(x, weight, codes).where(scaled, 0.0)


class FloatDependsOnTheBatch(SoundLinear):
    def float(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        return super().float(x, weight, codes) * (1 + 2.0**-22 * (len(x) > 4))


class FloatDependsOnThreads(SoundLinear):
    def float(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        return super().float(x, weight, codes) * (1 + 2.0**-22 * (torch.get_num_threads() == 3))


LINEAR_FAULTS = {"SoundLinear": SoundLinear, **faults_of(__name__, SoundLinear)}
