"""openvino with compressed weights: codes that its CPU plugin multiplies without expanding them in memory.

The pattern is the one its weight compression writes: codes, less a zero point of the same type, times a scale. The
plugin quantizes x to int8 in groups if it is asked to (dynamic quantization), and otherwise computes in the precision
that it is asked for; bfloat16 is its default on processors that have it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from bittensor import Capabilities, PreparedWeight
from bittensor.backend import WEIGHT_OPERATIONS
from bittensor.extras import extra

from .blocks import Blocks, in_bytes
from .compiled import Compiled
from .rival import Rival

with extra("rivals", "the backend 'openvino'", ("numpy", "openvino")):
    import numpy as np
    import openvino
    from openvino import opset13 as opset

CODE_TYPES = {2: openvino.Type.u2, 4: openvino.Type.u4, 8: openvino.Type.u8}
SCALE_TYPES = {torch.float16: "f16", torch.float32: "f32"}
"""Types of scales as they are stored; bfloat16 is widened."""

core = openvino.Core()


def model(blocks: Blocks, bits: int, rows: int = -1, bias: bool = False) -> Any:
    """X float32 ``[rows, B * size]`` to ``[rows, N]``; -1 stands for any number of rows.

    With `bias` there is a second input, float32 ``[N]``.
    """
    outputs, count, size = blocks.codes.shape
    scales = blocks.scales if blocks.scales.dtype in SCALE_TYPES else blocks.scales.float()
    scale_type = SCALE_TYPES[scales.dtype]
    zeros = torch.full((outputs, count), 2 ** (bits - 1), dtype=torch.uint8) if blocks.zeros is None else blocks.zeros
    differences = opset.subtract(
        opset.convert(_codes(blocks.codes, bits), scale_type), opset.convert(_codes(zeros[..., None], bits), scale_type)
    )
    values = opset.multiply(differences, opset.constant(scales.contiguous().numpy()[..., None]))
    matrix = opset.reshape(values, np.array([outputs, count * size]), False)
    if scale_type != "f32":
        matrix = opset.convert(matrix, "f32")
    inputs = [opset.parameter([rows, count * size], np.float32)]
    y = opset.matmul(inputs[0], matrix, False, True)
    if bias:
        inputs.append(opset.parameter([outputs], np.float32))
        y = opset.add(y, inputs[1])
    return openvino.Model([y], inputs)


def _codes(codes: torch.Tensor, bits: int) -> Any:
    tensor = openvino.Tensor(CODE_TYPES[bits], list(codes.shape))
    # Copied: a tensor made of an array does not keep it alive.
    tensor.data[:] = in_bytes(codes.flatten(), bits).numpy().reshape(tensor.data.shape)
    return opset.constant(tensor)


def settings(threads: int, activation_group_size: int, precision: str = "f32") -> dict[str, str]:
    """Properties of a compiled model; 0 for `activation_group_size` leaves x as it is."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(activation_group_size),
    }


def _compile(weight: PreparedWeight, mode: str, bias: bool, threads: int) -> Any:
    blocks = Blocks.of(weight)
    source = model(blocks, weight.form.bits, bias=bias)
    return core.compile_model(source, "CPU", settings(threads, blocks.size if mode == "int8" else 0))


class OpenvinoBackend(Rival):
    """Compressed weights in float32: x is widened. A last group that is shorter is filled up."""

    name = "openvino"
    capabilities = Capabilities(
        operations=frozenset(WEIGHT_OPERATIONS),
        numerics="bounded",
        linear_bits=frozenset(CODE_TYPES),
        zero_kinds=frozenset({"symmetric", "integer"}),
        epilogues=frozenset({None}),
    )

    def __init__(self) -> None:
        self._compiled = Compiled(_compile)

    def multiply(
        self, x: torch.Tensor, weight: PreparedWeight, bias: torch.Tensor | None, activation_mode: str
    ) -> torch.Tensor:
        compiled = self._compiled.get(weight, activation_mode, bias is not None, torch.get_num_threads())
        form = weight.form
        inputs = [pad(x.float(), (0, form.groups * form.group_size - form.shape[1])).numpy()]
        if bias is not None:
            inputs.append(bias.float().contiguous().numpy())
        request = compiled.create_infer_request()  # its own: calls may come from several threads
        return torch.from_numpy(request.infer(inputs, share_outputs=True)[0].copy())

    def describe(self) -> dict[str, str]:
        return {"openvino": openvino.__version__}
