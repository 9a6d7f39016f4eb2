"""openvino with compressed weights: codes of 4 bits that the plugin multiplies without expanding them in memory.

- Weights and zero points are u4, scales float16: the pattern its weight compression writes. With zero points of
  float16 the plugin does not quantize activations.
- int8: dynamic quantization in groups of the weight's group size, inference precision float32. Its default group is
  32, which is slower on weights of groups of 128; the plugin declines groups larger than the weight's.
- bfloat16: no dynamic quantization, and the default precision of processors with AVX512-BF16.
- One stream, the latency hint, fixed shapes; input and output tensors are bound once, and the result is not copied.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openvino
import torch
from openvino import opset13 as opset

from .peer import Peer, Weight

core = openvino.Core()


class OpenvinoCompressed(Peer):
    weight_bits = 4
    packages = ("openvino",)

    def __init__(self, name: str, activations: str, precision: str, tolerance: float) -> None:
        self.name = name
        self.activations = activations
        self.precision = precision
        self.tolerance = tolerance

    def build(self, weight: Weight, x: torch.Tensor, threads: int) -> Callable[[], object]:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": self.precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(weight.group_size if self.activations == "int8" else 0),
        }
        request = core.compile_model(model(weight, len(x)), "CPU", settings).create_infer_request()
        request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
        y = request.get_output_tensor().data  # a view

        def multiply() -> object:
            request.infer(share_outputs=True)
            return y

        return multiply


def model(weight: Weight, rows: int) -> openvino.Model:
    n, k = weight.shape
    groups = k // weight.group_size
    codes = nibbles(weight.nibbles.numpy(), [n, groups, weight.group_size])
    zeros = nibbles(np.full(-(-n * groups // 2), 0x88, np.uint8), [n, groups, 1])
    scales = opset.constant(weight.scales.half().numpy().reshape(n, groups, 1))
    values = opset.multiply(opset.subtract(opset.convert(codes, "f16"), opset.convert(zeros, "f16")), scales)
    matrix = opset.convert(opset.reshape(values, np.array([n, k]), False), "f32")
    x = opset.parameter([rows, k], np.float32)
    return openvino.Model([opset.matmul(x, matrix, False, True)], [x])


def nibbles(data: np.ndarray, shape: list[int]) -> openvino.Node:
    tensor = openvino.Tensor(openvino.Type.u4, shape)
    tensor.data[:] = data.reshape(tensor.data.shape)  # copied: a tensor made of an array does not keep it alive
    return opset.constant(tensor)


PEERS = [
    OpenvinoCompressed("openvino int4, int8", "int8", "f32", 0.02),
    OpenvinoCompressed("openvino int4, bfloat16", "float", "bf16", 0.01),
]
