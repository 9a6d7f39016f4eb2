"""The same row has other bits in another batch, and at accuracy_level 4 also at another place of its batch.

Library: onnxruntime
Verdict: differs
Promise: none is made, and most matrix products behave so. The differences are those of the order of float32 sums.
Seen: Intel Xeon with AMX, AMD Zen 4, AMD Zen 5

A row alone takes another kernel than two or more; at level 4 the last row of an odd number takes it too. Each of the
results lies well within its bound. Numbers of threads that divide the sums otherwise show the same.
"""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

outputs, columns, block = 40, 256, 128


def multiply(x: np.ndarray, accuracy_level: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, (outputs, columns // block, block // 2), np.uint8)
    scales = generator.random((outputs, columns // block), np.float32)
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


row = np.random.default_rng(1).standard_normal((1, columns), np.float32)
for level in (0, 4):
    alone, batch = multiply(row, level), multiply(row.repeat(5, axis=0), level)
    assert np.allclose(batch, alone, rtol=1e-4, atol=1e-4)
    assert not np.array_equal(batch[:1], alone)
assert not np.array_equal(batch[4], batch[0])  # of level 4, the loop's last
