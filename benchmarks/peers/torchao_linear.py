"""torchao's int4 weights on CPUs: a tensor subclass around torch's int4 operator, given the same codes.

Its other path, int8 activations (``da8w4``), needs C++ kernels that the wheel for x86-64 does not have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from bittensor_rivals.torch_int4 import int4pack
from torch.nn.functional import linear
from torchao.prototype.quantization.int4.int4_opaque_tensor import Int4OpaqueTensor

from .peer import Peer, Weight
from .torch_linear import TorchInt4


class TorchaoInt4(TorchInt4):
    name = "torchao int4"
    packages = ("torchao", "torch")

    def build(self, weight: Weight, x: torch.Tensor, threads: int) -> Callable[[], object]:
        packed, scales_and_offsets = int4pack(weight.codes, weight.scales, None, torch.bfloat16)
        values = Int4OpaqueTensor(packed, scales_and_offsets, [1, weight.group_size], torch.Size(weight.shape))
        x = x.bfloat16()
        return lambda: linear(x, values)


PEERS: list[Peer] = [TorchaoInt4()]
