"""Scales are not checked: if they are too few, what lies behind them is read; strided ones are read as if contiguous.

Library: torch
Verdict: unchecked
Promise: none is made. The operator is private, by its underscore, and torchao, which calls it, passes what fits.
Seen: Intel Xeon with AMX, AMD Zen 4, AMD Zen 5

The shapes of x and of the weight are checked. Codes above 15 and below 0 are not, when a weight is converted.
"""

import torch

multiply, convert = torch.ops.aten._weight_int4pack_mm_for_cpu, torch.ops.aten._convert_weight_to_int4pack_for_cpu
torch.manual_seed(0)
packed = convert(torch.randint(0, 16, (32, 256), dtype=torch.int32), 1)
scales = torch.rand(8, 32, 2)  # of 8 groups
x = torch.randn(2, 256)
y = multiply(x, packed, 32, scales)

assert torch.equal(multiply(x, packed, 32, scales[:1]), y)  # the scales of one group: the rest is read behind them
strided = scales.transpose(0, 1).contiguous().transpose(0, 1)
assert torch.equal(strided, scales)
assert not torch.allclose(multiply(x, packed, 32, strided), y, atol=0.1)
