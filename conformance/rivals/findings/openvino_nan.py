"""A NaN in x disappears where activations are quantized: the row's results are finite, and other numbers.

Library: openvino
Verdict: silent
Promise: none is made. Dynamic quantization is described as a trade of accuracy for performance, by activations that
    are quantized during inference. Its group size is 32 by default.
Checks: int8_one_bad_row
Seen: Intel Xeon with AMX, AMD Zen 4, AMD Zen 5

A group of nothing but NaN does give NaN. In float32 without dynamic quantization, as with the execution mode hint
ACCURACY, a NaN makes its row NaN.
"""

import numpy as np
import openvino
from openvino import opset13 as opset

rows, columns, group = 16, 64, 32
codes = openvino.Tensor(openvino.Type.u4, [rows, columns // group, group])
codes.data[:] = np.random.default_rng(0).integers(0, 256, codes.data.shape)
zeros = openvino.Tensor(openvino.Type.u4, [rows, columns // group, 1])
zeros.data[:] = 0x88
difference = opset.subtract(opset.convert(opset.constant(codes), "f16"), opset.convert(opset.constant(zeros), "f16"))
scaled = opset.multiply(difference, opset.constant(np.ones((rows, columns // group, 1), np.float16)))
weight = opset.convert(opset.reshape(scaled, np.array([rows, columns]), False), "f32")
x = opset.parameter([-1, columns], np.float32)
model = openvino.Model([opset.matmul(x, weight, False, True)], [x])

values = np.ones((1, columns), np.float32)
values[0, 3] = np.nan
accurate = openvino.Core().compile_model(model, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
assert np.isnan(accurate(values)[0]).all()
settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}
quantized = openvino.Core().compile_model(model, "CPU", settings)
assert np.isfinite(quantized(values)[0]).all()
