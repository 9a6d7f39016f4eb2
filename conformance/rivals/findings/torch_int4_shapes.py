"""Outputs come in sixteens, groups in 32, 64, 128 or 256 columns, columns in whole groups, x without strides.

Library: torch
Verdict: unsupported
Promise: the operator refuses the rest, each with a clear message.
Seen: Intel Xeon with AMX, AMD Zen 4, AMD Zen 5

The adapter fills rows and columns up, and cuts groups of other multiples of 32 into blocks.
"""

import pytest
import torch

multiply, convert = torch.ops.aten._weight_int4pack_mm_for_cpu, torch.ops.aten._convert_weight_to_int4pack_for_cpu
for outputs, columns, group, message in (
    (8, 64, 32, "dividable by 16"),
    (16, 64, 16, "expect qGroupSize to be 32, 64, 128 or 256"),
    (16, 48, 32, "expect K to be divisible by qGroupSize"),
):
    scales = torch.zeros(-(-columns // group), outputs, 2)
    with pytest.raises(RuntimeError, match=message):
        multiply(torch.zeros(1, columns), convert(torch.zeros(outputs, columns, dtype=torch.int32), 1), group, scales)
packed = convert(torch.zeros(16, 64, dtype=torch.int32), 1)
with pytest.raises(RuntimeError, match="contiguous"):
    multiply(torch.zeros(1, 128)[:, ::2].expand(2, 64), packed, 32, torch.zeros(2, 16, 2))
