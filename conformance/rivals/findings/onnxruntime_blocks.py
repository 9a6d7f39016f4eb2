"""Blocks are powers of two from 16 columns on; with 2 bits, up to 256.

Library: onnxruntime
Verdict: unsupported
Promise: the operator's documentation says so, "a power of 2 and not smaller than 16", and the rest is refused.
Seen: Intel Xeon with AMX, AMD Zen 4, AMD Zen 5

The adapter cuts groups of other multiples of 16 into blocks. A last block that is shorter, and any number of outputs,
are supported.
"""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper


def session(block: int, bits: int) -> None:
    codes, scales = np.zeros((1, 1, block * bits // 8), np.uint8), np.ones((1, 1), np.float32)
    attributes = {"K": block, "N": 1, "bits": bits, "block_size": block}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", **attributes)
    sizes = (("x", block), ("y", 1))
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name, size in sizes]
    constants = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", shapes[:1], shapes[1:], constants), opset_imports=opsets, ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options)


session(16, bits=4)
session(256, bits=2)
for block, bits in ((8, 4), (24, 4), (512, 2)):
    with pytest.raises(Exception, match=r"block_size|2-bit"):
        session(block, bits)
