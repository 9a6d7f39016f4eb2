"""The operators of transformers under torch.library.opcheck."""

from __future__ import annotations

import torch
from fused_operands import EPSILON, SEQUENCES, weight_of

import bittensor
from bittensor.fused import cache_shapes


def test_operators_are_sound() -> None:
    backend = bittensor.get_backend("cpp")
    blob = backend.prepare(weight_of(24, 16, group_size=8)).tensors[0]
    operators = torch.ops.bittensor_cpp
    torch.library.opcheck(operators.fused_linear.default, (torch.randn(3, 16), blob, 24, torch.ones(16), EPSILON))
    torch.library.opcheck(
        operators.fused_linear.default, (torch.randn(3, 32), blob, 24, None, 0.0, True, torch.randn(3, 24))
    )
    down = backend.prepare(weight_of(20, 24, group_size=8)).tensors[0]
    torch.library.opcheck(
        operators.feed_forward.default, (torch.randn(2, 3, 16), blob, torch.randn(24), down, 20, None, True, 2)
    )
    keys, values = (torch.zeros(shape) for shape in cache_shapes(2, 10, 8))
    torch.library.opcheck(
        operators.attend.default, (torch.randn(3, 64), torch.randn(3, 8), torch.randn(3, 8), keys, values, 2, 4)
    )
    case = SEQUENCES[2]
    torch.library.opcheck(operators.attend_bidirectional.default, (case.query, case.key, case.value, case.mask, 0.3))
