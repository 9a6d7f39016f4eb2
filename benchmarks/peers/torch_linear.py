"""torch's own linear layers.

- float32 and bfloat16: the layer as it is before anything is quantized.
- dynamic int8: `torch.ao.quantization.quantize_dynamic` as documented, weights of 8 bits with one scale, and the
  engine "x86", which is the default on these processors.
- int4: the operator behind int4 inference on CPUs. Activations and scales are bfloat16: with float32 or float16 it
  runs plain loops.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from bittensor_rivals.torch_int4 import GROUP_SIZES, OUTPUT_MULTIPLE, int4pack
from torch.nn.functional import linear

from .peer import Cell, Peer, Weight


class TorchFloat(Peer):
    activations = "float"

    def __init__(self, dtype: torch.dtype, tolerance: float) -> None:
        self.dtype = dtype
        self.name = f"torch {str(dtype).removeprefix('torch.')}"
        self.weight_bits = 8 * dtype.itemsize
        self.tolerance = tolerance

    def build(self, weight: Weight, x: torch.Tensor, threads: int) -> Callable[[], object]:
        values, x = weight.dequantized().to(self.dtype), x.to(self.dtype)
        return lambda: linear(x, values)


class TorchDynamicInt8(Peer):
    name = "torch dynamic int8"
    weight_bits = 8
    activations = "int8"
    tolerance = 0.04  # activations of 7 bits with one scale for all rows, weights of 8 bits with one scale

    def build(self, weight: Weight, x: torch.Tensor, threads: int) -> Callable[[], object]:
        n, k = weight.shape
        model = torch.nn.Sequential(torch.nn.Linear(k, n, bias=False, device="meta"))
        model[0].weight = torch.nn.Parameter(weight.dequantized(), requires_grad=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchao is recommended instead: see its file
            layer = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)[0]
        return lambda: layer(x)


class TorchInt4(Peer):
    name = "torch int4"
    weight_bits = 4
    activations = "float"
    tolerance = 0.01

    def unsupported(self, cell: Cell) -> str | None:
        if cell.n % OUTPUT_MULTIPLE:
            return "outputs that are not a multiple of 16"
        if cell.group_size not in GROUP_SIZES:
            return "groups of other sizes than 32, 64, 128 and 256"
        return None

    def build(self, weight: Weight, x: torch.Tensor, threads: int) -> Callable[[], object]:
        packed, scales_and_offsets = int4pack(weight.codes, weight.scales, None, torch.bfloat16)
        x = x.bfloat16()
        multiply, group_size = torch.ops.aten._weight_int4pack_mm_for_cpu.default, weight.group_size
        return lambda: multiply(x, packed, group_size, scales_and_offsets)


PEERS = [TorchFloat(torch.float32, 1e-5), TorchFloat(torch.bfloat16, 0.01), TorchDynamicInt8(), TorchInt4()]
