"""onnxruntime's MatMulNBits, the operator that its models of low bits are made of.

Its accuracy_level says how x may be rounded: 0, the default, not at all; 4, to int8 in blocks of the block size. Blocks
are powers of two from 16 columns on, the last may be shorter; scales have the dtype of x.
"""

from __future__ import annotations

from typing import Any

import torch

from bittensor import Capabilities, PreparedWeight
from bittensor.backend import WEIGHT_OPERATIONS
from bittensor.extras import extra

from .blocks import Blocks, in_bytes
from .compiled import Compiled
from .rival import Rival

with extra("rivals", "the backend 'onnxruntime'", ("onnx", "onnxruntime")):
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

BLOCK_SIZES = (16, 32, 64, 128, 256)
ACCURACY_LEVELS = {"float": 0, "int8": 4}
"""accuracy_level for each activation mode."""


def model(
    blocks: Blocks, columns: int, bits: int, accuracy_level: int, rows: int | str = "rows", bias: bool = False
) -> bytes:
    """An ONNX model of one MatMulNBits with constant weights: x float32 ``[rows, columns]`` to y ``[rows, N]``.

    With `bias` there is a second input, float32 ``[N]``.
    """
    outputs = len(blocks.codes)
    constants = {"codes": in_bytes(blocks.codes, bits), "scales": blocks.scales.float().contiguous()}
    if blocks.zeros is not None:
        constants["zeros"] = in_bytes(blocks.zeros, bits)
    inputs = {"x": [rows, columns], **({"bias": [outputs]} if bias else {})}
    node = helper.make_node(
        "MatMulNBits",
        # without zero points, code 2**(bits - 1) is 0; the place after them was for an order of columns
        ["x", "codes", "scales", "zeros" if blocks.zeros is not None else "", "", "bias" if bias else ""],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=outputs,
        bits=bits,
        block_size=blocks.size,
        accuracy_level=accuracy_level,
    )
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, outputs])],
        [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return serialized


def _compile(weight: PreparedWeight, mode: str, bias: bool, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # many sessions, one machine
    form = weight.form
    source = model(Blocks.of(weight, BLOCK_SIZES), form.shape[1], form.bits, ACCURACY_LEVELS[mode], bias=bias)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class OnnxruntimeBackend(Rival):
    """MatMulNBits in float32: x and scales are widened. Groups are cut into blocks of a size that it takes."""

    name = "onnxruntime"
    capabilities = Capabilities(
        operations=frozenset(WEIGHT_OPERATIONS),
        numerics="bounded",
        # Its zero points of float are subtracted before the scale is multiplied: converting offsets would round.
        zero_kinds=frozenset({"symmetric", "integer"}),
        group_size_multiple=min(BLOCK_SIZES),
        epilogues=frozenset({None}),
    )

    def __init__(self) -> None:
        self._compiled = Compiled(_compile)

    def multiply(
        self, x: torch.Tensor, weight: PreparedWeight, bias: torch.Tensor | None, activation_mode: str
    ) -> torch.Tensor:
        session = self._compiled.get(weight, activation_mode, bias is not None, torch.get_num_threads())
        inputs = {"x": x.float().numpy()}
        if bias is not None:
            inputs["bias"] = bias.float().contiguous().numpy()
        return torch.from_numpy(session.run(None, inputs)[0])

    def describe(self) -> dict[str, str]:
        return {"onnxruntime": onnxruntime.__version__}
