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

import openvino
import torch
from bittensor_rivals.openvino_compressed import core, model, settings

from .peer import Peer, Weight


class OpenvinoCompressed(Peer):
    weight_bits = 4
    packages = ("openvino",)

    def __init__(self, name: str, activations: str, precision: str, tolerance: float) -> None:
        self.name = name
        self.activations = activations
        self.precision = precision
        self.tolerance = tolerance

    def build(self, weight: Weight, x: torch.Tensor, threads: int) -> Callable[[], object]:
        properties = settings(threads, weight.group_size if self.activations == "int8" else 0, self.precision)
        source = model(weight.blocks.with_scales(torch.float16), bits=4, rows=len(x))
        request = core.compile_model(source, "CPU", properties).create_infer_request()
        request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
        y = request.get_output_tensor().data  # a view

        def multiply() -> object:
            request.infer(share_outputs=True)
            return y

        return multiply


PEERS = [
    OpenvinoCompressed("openvino int4, int8", "int8", "f32", 0.02),
    OpenvinoCompressed("openvino int4, bfloat16", "float", "bf16", 0.01),
]
