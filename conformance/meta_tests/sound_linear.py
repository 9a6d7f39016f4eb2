"""A linear that is right, in steps that broken_linears.py and broken_gradients.py replace one by one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from bittensor_reference import ReferenceBackend, epilogues
from bittensor_reference.fma import fma
from broken_backends import Sound

from bittensor import PreparedWeight, QuantizedWeight
from bittensor.codes import codes_per_word

Tensor = torch.Tensor
Sums = dict[int, tuple[Tensor, Tensor, Tensor]]
"""t, the sum of the activation codes and their scale, of each group of a weight."""


class SoundLinear(Sound):
    """Nothing is wrong with it: the control."""

    name = "sound-linear"

    def embedding(self, indices: torch.Tensor, weight: PreparedWeight, dtype: torch.dtype) -> torch.Tensor:
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < weight.form.shape[0]:
            raise ValueError(f"indices: expected rows of the table, got {indices.tolist()}")
        return super().embedding(indices, weight, dtype)

    def prepare(self, weight: QuantizedWeight) -> PreparedWeight:
        canonical = weight.canonical()
        words, *rest = canonical.tensors
        codes = ReferenceBackend().unpack(words, weight.shape[1], weight.bits)
        tensors = (self.prepare_words(codes, weight.bits), *rest)
        return PreparedWeight(canonical.form, canonical.layout, tensors)

    def prepare_words(self, codes: Tensor, bits: int) -> Tensor:
        return ReferenceBackend().pack(codes, bits)

    def restore(self, weight: PreparedWeight) -> QuantizedWeight:
        return QuantizedWeight.from_canonical(weight)

    def linear(
        self, x: Tensor, weight: PreparedWeight, bias: Tensor | None, activation_mode: str, epilogue: str | None
    ) -> Tensor:
        quantized = QuantizedWeight.from_canonical(weight)
        self.form, self.bias = weight.form, bias
        rows = x.reshape(x.shape[:-1].numel(), x.shape[-1]).float()
        codes = self.codes_of_weight(quantized).double()
        y = (self.int8 if activation_mode == "int8" else self.float)(rows, quantized, codes)
        return self.finish(y, bias, epilogue, x.dtype).reshape(*x.shape[:-1], quantized.shape[0])

    def codes_of_weight(self, weight: QuantizedWeight) -> Tensor:
        return ReferenceBackend().unpack(weight.words, weight.shape[1], weight.bits)

    def group_of(self, column: int) -> int:
        return column // self.form.group_size

    def columns_of_groups(self) -> list[list[int]]:
        columns: list[list[int]] = [[] for _ in range(self.form.groups)]
        for column in range(self.form.shape[1]):
            columns[min(self.group_of(column), self.form.groups - 1)].append(column)
        return columns

    def scales_of(self, grouped: Tensor, group: int) -> Tensor:
        return grouped[:, group].float()

    def zeros_of(self, weight: QuantizedWeight, group: int) -> Tensor:
        if weight.zero == "integer":
            assert weight.zeros is not None
            return weight.zeros[:, group].double()
        return torch.full((weight.shape[0],), 0.0 if weight.zero == "float" else 2.0 ** (weight.bits - 1)).double()

    def int8(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        finite = x.isfinite().all(dim=1, keepdim=True)
        y = self.start(x.shape[0], weight)
        values = torch.where(finite, x, 0.0)
        columns, together = self.columns_of_groups(), self.groups_together()
        sums: Sums = {}
        for start in range(0, len(columns), together):
            groups = range(start, min(start + together, len(columns)))
            part = values[:, [k for group in groups for k in columns[group]]]
            a, scale = self.quantize(part, self.largest(values, part))
            for group, own in zip(groups, a.split([len(columns[group]) for group in groups], dim=1), strict=True):
                total = own.sum(dim=1, keepdim=True)
                t = self.dot(own, codes[:, columns[group]]) - self.zeros_of(weight, group) * total
                sums[group] = t, total, scale
        for start in self.in_order(range(0, len(columns), together)):
            y = self.accumulate(self.met(weight, sums, start), sums[start][2], y)
        return self.mark(y, finite)

    def met(self, weight: QuantizedWeight, sums: Sums, start: int) -> Tensor:
        """What the group of activations that begins with group `start` of the weight gives, before its scale."""
        z = None
        for group in range(start, min(start + self.groups_together(), len(sums))):
            t, total, _ = sums[group]
            z = self.scale_sum(t, self.scales_of(weight.scales, group), z)
            if weight.offsets is not None:
                z = self.add_offset(total, self.scales_of(weight.offsets, group), z)
        assert z is not None
        return z

    def groups_together(self) -> int:
        return 1 if self.form.bits == 8 or self.form.zero == "float" else max(64 // self.form.group_size, 1)

    def in_order(self, groups: range) -> range:
        return groups

    def start(self, rows: int, weight: QuantizedWeight) -> Tensor:
        return torch.zeros(rows, weight.shape[0])

    def largest(self, row: Tensor, part: Tensor) -> Tensor:
        if not part.shape[1]:
            return torch.zeros(part.shape[0], 1)
        return part.abs().amax(dim=1, keepdim=True)

    smallest = 2.0**-100

    def quantize(self, part: Tensor, amax: Tensor) -> tuple[Tensor, Tensor]:
        zero = amax < self.smallest
        safe = torch.where(zero, 1.0, amax)
        a = self.round(self.scaled(part, safe))
        return torch.where(zero, 0.0, a).double(), torch.where(zero, 0.0, self.activation_scale(safe))

    def scaled(self, part: Tensor, amax: Tensor) -> Tensor:
        return part * (torch.full_like(amax, 127.0) / amax)

    def activation_scale(self, amax: Tensor) -> Tensor:
        return amax / torch.full_like(amax, 127.0)

    def round(self, values: Tensor) -> Tensor:
        return torch.round(values)

    def dot(self, a: Tensor, codes: Tensor) -> Tensor:
        return F.linear(a, codes)

    def scale_sum(self, t: Tensor, w_scale: Tensor, z: Tensor | None) -> Tensor:
        return t.float() * w_scale if z is None else fma(t.float(), w_scale, z)

    def accumulate(self, z: Tensor, a_scale: Tensor, y: Tensor) -> Tensor:
        return fma(z, a_scale, y)

    def add_offset(self, total: Tensor, offset: Tensor, z: Tensor) -> Tensor:
        return fma(total.float(), offset, z)

    def mark(self, y: Tensor, finite: Tensor) -> Tensor:
        return torch.where(finite, y, torch.nan)

    def float(self, x: Tensor, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        y = torch.zeros(x.shape[0], weight.shape[0]).double()
        for group, columns in enumerate(self.columns_of_groups()):
            part = x[:, columns].double()
            centered = codes[:, columns] - self.zeros_of(weight, group)[:, None]
            # Row by row: torch may add up the columns of a batch in another order than those of a row.
            product = torch.stack([F.linear(row, centered) for row in part]) if len(part) else part @ centered.T
            y = y + product * self.scales_of(weight.scales, group)
            if weight.offsets is not None:
                y = y + part.sum(dim=1, keepdim=True) * self.scales_of(weight.offsets, group)
        return y.float()

    def add_float_bias(self, y: Tensor, bias: Tensor | None) -> Tensor:
        return y if bias is None else y + bias.float()

    def finish(self, y: Tensor, bias: Tensor | None, epilogue: str | None, dtype: torch.dtype) -> Tensor:
        return self.cast(self.apply(epilogue, self.add_float_bias(y, bias)), dtype)

    def apply(self, epilogue: str | None, y: Tensor) -> Tensor:
        functions = {"relu": self.relu, "gelu": self.gelu, "silu": self.silu}
        return y if epilogue is None else functions[epilogue](y)

    def relu(self, y: Tensor) -> Tensor:
        return epilogues.relu(y)

    def gelu(self, y: Tensor) -> Tensor:
        return epilogues.gelu(y)

    def silu(self, y: Tensor) -> Tensor:
        return epilogues.silu(y)

    def cast(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        return y.to(dtype)

    def whole_words(self, weight: QuantizedWeight) -> Tensor:
        columns = weight.words.shape[1] * codes_per_word(weight.bits)
        return ReferenceBackend().unpack(weight.words, columns, weight.bits)

    def linear_input_grad(self, dy: Tensor, weight: PreparedWeight) -> Tensor:
        quantized = QuantizedWeight.from_canonical(weight)
        self.form = weight.form
        values = self.gradient_weight(quantized, self.codes_of_weight(quantized).double())
        rows = dy.reshape(dy.shape[:-1].numel(), dy.shape[-1])
        return self.cast_gradient(self.gradient(rows, values), dy.dtype).reshape(*dy.shape[:-1], weight.form.shape[1])

    def gradient_weight(self, weight: QuantizedWeight, codes: Tensor) -> Tensor:
        values = torch.empty(weight.shape)
        for group in range(weight.form.groups):
            columns = slice(group * weight.group_size, (group + 1) * weight.group_size)
            centered = codes[:, columns] - self.gradient_zero(weight, group)[:, None]
            values[:, columns] = centered.float() * weight.scales[:, self.gradient_group(group), None].float()
            if weight.offsets is not None:
                values[:, columns] += self.gradient_offset(weight.offsets[:, group, None].float())
        return values

    def gradient_group(self, group: int) -> int:
        return group

    def gradient_zero(self, weight: QuantizedWeight, group: int) -> Tensor:
        return SoundLinear.zeros_of(self, weight, group)

    def gradient_offset(self, offset: Tensor) -> Tensor:
        return offset

    def gradient(self, dy: Tensor, values: Tensor) -> Tensor:
        rows = [row.double() @ values.double() for row in dy]
        return torch.stack(rows).float() if rows else values.new_empty(0, values.shape[1])

    def cast_gradient(self, dx: Tensor, dtype: torch.dtype) -> Tensor:
        return dx.to(dtype)
