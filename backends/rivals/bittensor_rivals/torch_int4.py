"""torch's `_weight_int4pack_mm_for_cpu`: float activations, 4-bit codes around 8, and an offset for each group.

x, scales and the result have one dtype; there is no bias. Outputs come in sixteens, groups in 32, 64, 128 or 256
columns, columns in whole groups.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import pad

from bittensor import Capabilities, PreparedWeight
from bittensor.backend import WEIGHT_OPERATIONS

from .blocks import Blocks
from .compiled import Compiled
from .rival import Rival

GROUP_SIZES = (32, 64, 128, 256)
OUTPUT_MULTIPLE = 16


def int4pack(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes ``[N, K]`` in torch's layout, and ``[G, N, 2]`` of `dtype`: scales ``[N, G]``, and the values of code 8.

    `zeros`, uint8 ``[N, G]``, are the codes that stand for 0; None if all are 8.
    """
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    offsets = torch.zeros_like(scales) if zeros is None else (8 - zeros.to(scales.dtype)) * scales
    return packed, torch.stack([scales.T, offsets.T], dim=-1).to(dtype).contiguous()


def _compile(weight: PreparedWeight, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, int]:
    blocks = Blocks.of(weight, GROUP_SIZES)
    rows = (0, 0, 0, -len(blocks.codes) % OUTPUT_MULTIPLE)
    codes, scales = (pad(each, rows) for each in (blocks.codes.flatten(1), blocks.scales.float()))
    zeros = None if blocks.zeros is None else pad(blocks.zeros, rows)
    return *int4pack(codes, scales, zeros, dtype), blocks.size


class TorchInt4Backend(Rival):
    """The operator in float32: x and scales are widened. Rows and columns are filled up to what it takes."""

    name = "torch_int4"
    capabilities = Capabilities(
        operations=frozenset(WEIGHT_OPERATIONS),
        bits=frozenset({4}),
        numerics="bounded",
        linear_bits=frozenset({4}),
        # Its offsets belong to code 8, those of "float" to code 0: converting them would round.
        zero_kinds=frozenset({"symmetric", "integer"}),
        group_size_multiple=min(GROUP_SIZES),
        activation_modes=frozenset({"float"}),
        epilogues=frozenset({None}),
    )

    def __init__(self) -> None:
        self._compiled = Compiled(_compile)

    def multiply(
        self, x: torch.Tensor, weight: PreparedWeight, bias: torch.Tensor | None, activation_mode: str
    ) -> torch.Tensor:
        dtype = self.dtype_for(x, weight, bias)
        packed, scales_and_offsets, size = self._compiled.get(weight, dtype)
        x = pad(x.to(dtype), (0, len(scales_and_offsets) * size - x.shape[1]))
        y: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, size, scales_and_offsets)
        y = y[:, : weight.form.shape[0]]
        return y if bias is None else y + bias.float()

    def dtype_for(self, x: torch.Tensor, weight: PreparedWeight, bias: torch.Tensor | None) -> torch.dtype:
        """The dtype that the operator is called with."""
        return torch.float32

    def describe(self) -> dict[str, str]:
        return {"torch": torch.__version__, "isa": torch.backends.cpu.get_cpu_capability()}


class NativeTorchInt4Backend(TorchInt4Backend):
    """The operator in the dtype of x, which is how models call it, if the scales have that dtype; else in float32.

    Also in float32 if a bias is to be added: what it costs to round twice would not be the operator's doing.
    """

    name = "torch_int4_native"
    # Offsets for zero points other than 8 would have to be rounded to the dtype.
    capabilities = replace(TorchInt4Backend.capabilities, zero_kinds=frozenset({"symmetric"}))

    def dtype_for(self, x: torch.Tensor, weight: PreparedWeight, bias: torch.Tensor | None) -> torch.dtype:
        return x.dtype if x.dtype is weight.form.scale_dtype and bias is None else torch.float32
