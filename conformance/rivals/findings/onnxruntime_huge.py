"""At accuracy_level 4, a scale whose product with the zero point overflows float32 makes its row infinite or NaN.

Library: onnxruntime
Verdict: wrong
Promise: the operator's documentation, "dequantized_weight = (quantized_weight - zero_point) * scale". Here every weight
    is finite, and so is every product and every sum.
Checks: int8_matches_the_oracle int8_every_magnitude
Seen: Intel Xeon with AMX, AMD Zen 4

That is scales from 2^125 on at 4 bits, from 2^121 on at 8 bits, and 2^127 at 2 bits: no model's. Level 0 is right here.
Where a weight itself overflows, it too gives NaN for a row of zeros, and ours gives 0: nobody promised that.
"""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

outputs, columns, block = 16, 32, 32


def multiply(x: np.ndarray, accuracy_level: int) -> np.ndarray:
    codes = np.full((outputs, columns // block, block // 2), 0x99, np.uint8)  # all codes are 9, one more than the zero
    scales = np.full((outputs, columns // block), 2.0**125, np.float32)
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


tiny = np.full((1, columns), 2.0**-60, np.float32)
assert (multiply(tiny, accuracy_level=0) == 32 * 2.0**65).all()
assert np.isneginf(multiply(tiny, accuracy_level=4)).all()
assert np.isnan(multiply(0 * tiny, accuracy_level=4)).all()
