"""The reference backend. Read it beside docs/numerics.md; speed is not its purpose."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bittensor import PreparedWeight, QuantizedWeight
from bittensor.backend import OPERATIONS, PROTOCOL_VERSION, Backend, Capabilities
from bittensor.codes import codes_per_word, max_code, words_per_row

from .epilogues import EPILOGUES
from .linear import linear_float, linear_int8


class ReferenceBackend(Backend):
    """Every operation as its definition reads."""

    name = "reference"
    protocol_version = PROTOCOL_VERSION
    capabilities = Capabilities(operations=frozenset(OPERATIONS), epilogues=frozenset(EPILOGUES))

    def pack(self, codes: torch.Tensor, bits: int) -> torch.Tensor:
        words, per_word = words_per_row(codes.shape[-1], bits), codes_per_word(bits)
        if codes.numel() == 0:  # a matrix without rows may have columns next to 2^63, which nothing can pad
            return codes.new_zeros((*codes.shape[:-1], words), dtype=torch.int64)
        codes = F.pad(codes, (0, words * per_word - codes.shape[-1]))
        lanes = codes.reshape(*codes.shape[:-1], words, per_word).to(torch.int64)
        # The lanes do not overlap, so their sum is their union; the top lane wraps into the sign bit, as it should.
        return (lanes << _shifts(bits)).sum(dim=-1)

    def unpack(self, words: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
        lanes = (words.unsqueeze(-1) >> _shifts(bits)) & max_code(bits)
        return lanes.flatten(-2)[..., :columns].to(torch.uint8).contiguous()

    def packed_matmul(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        bits: int,
        in_features: int | None,
        x_zero: int,
        weight_zero: int,
        scale: torch.Tensor | None,
        out_zero: int,
        out_dtype: torch.dtype | None,
    ) -> torch.Tensor:
        if x.dtype == torch.int64:
            assert in_features is not None
            x = self.unpack(x, in_features, bits)
        codes = self.unpack(weight, x.shape[-1], bits)
        # float64 holds every int32 exactly, so this sum is exact in any order, and fast.
        acc = F.linear(x.to(torch.float64) - x_zero, codes.to(torch.float64) - weight_zero)
        if bias is not None:
            acc = acc + bias
        if out_dtype is torch.int32:
            return acc.to(torch.int32)
        if scale is not None:
            acc = torch.round(acc.to(torch.float32) * scale) + out_zero
        return self.pack(acc.clamp(0, max_code(bits)).to(torch.uint8), bits)

    def prepare(self, weight: QuantizedWeight) -> PreparedWeight:
        return weight.canonical()

    def restore(self, weight: PreparedWeight) -> QuantizedWeight:
        return QuantizedWeight.from_canonical(weight)

    @torch.no_grad()
    def linear(
        self,
        x: torch.Tensor,
        weight: PreparedWeight,
        bias: torch.Tensor | None,
        activation_mode: str,
        epilogue: str | None,
    ) -> torch.Tensor:
        quantized = self.restore(weight)
        rows, columns = x.shape[:-1].numel(), x.shape[-1]
        codes = self.unpack(quantized.words, columns, quantized.bits)
        multiply = {"int8": linear_int8, "float": linear_float}[activation_mode]
        y = multiply(x.reshape(rows, columns).to(torch.float32), quantized, codes)
        if bias is not None:
            y = y + bias.to(torch.float32)
        # float32 already in section 4: epilogues, and the rounding to float16 or bfloat16, start there.
        y = EPILOGUES[epilogue](y.to(torch.float32))
        return y.to(x.dtype).reshape(*x.shape[:-1], quantized.shape[0])

    @torch.no_grad()
    def linear_input_grad(self, dy: torch.Tensor, weight: PreparedWeight) -> torch.Tensor:
        values = self.restore(weight).dequantize().to(torch.float64)
        # Row by row: a sum may depend on the size of a batch, and a row of dy must not.
        rows = [row @ values for row in dy.reshape(-1, values.shape[0]).to(torch.float64)]
        dx = torch.stack(rows) if rows else values.new_empty(0, values.shape[1])
        return dx.to(torch.float32).to(dy.dtype).reshape(*dy.shape[:-1], values.shape[1])

    @torch.no_grad()
    def embedding(self, indices: torch.Tensor, weight: PreparedWeight, dtype: torch.dtype) -> torch.Tensor:
        return self.restore(weight).dequantize(dtype)[indices.to(torch.int64)].contiguous()


def _shifts(bits: int) -> torch.Tensor:
    return torch.arange(codes_per_word(bits), device="cpu") * bits
