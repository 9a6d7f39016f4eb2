"""A NaN in x disappears at accuracy_level 4: the row's results are finite, and other numbers.

Library: onnxruntime
Verdict: silent
Promise: none is made. Level 4 "means input A can be quantized with the same block_size to int8 internally".
Checks: int8_one_bad_row
Seen: Intel Xeon with AMX, AMD Zen 4, AMD Zen 5

A block of nothing but NaN does give NaN, an infinity makes its row not finite, and levels 0 to 3 keep every NaN.
"""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

outputs, columns, block = 16, 64, 32


def multiply(x: np.ndarray, accuracy_level: int) -> np.ndarray:
    codes = np.random.default_rng(0).integers(0, 256, (outputs, columns // block, block // 2), np.uint8)
    scales = np.ones((outputs, columns // block), np.float32)
    attributes = {"K": columns, "N": outputs, "bits": 4, "block_size": block, "accuracy_level": accuracy_level}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", **attributes)
    sizes = (("x", columns), ("y", outputs))
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name, size in sizes]
    constants = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", shapes[:1], shapes[1:], constants), opset_imports=opsets, ir_version=10
    )
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


x = np.ones((1, columns), np.float32)
x[0, 3] = np.nan
assert np.isnan(multiply(x, accuracy_level=0)).all()
assert np.isfinite(multiply(x, accuracy_level=4)).all()
