"""Activations below 2^-121, quantized to int8, become the most negative code, whatever their sign.

Library: openvino
Verdict: wrong
Promise: CPU_DENORMALS_OPTIMIZATION, which would allow to flush, is off.
Seen: Intel Xeon with AMX, AMD Zen 4, AMD Zen 5

127 / amax overflows there. The results are wrong in sign and size, but no larger than sums of 2^-121 times the
weights: nothing that a model would notice. Other groups of the row are not touched.
"""

import numpy as np
import openvino
from openvino import opset13 as opset

rows, columns = 16, 32
codes = openvino.Tensor(openvino.Type.u4, [rows, 1, columns])
codes.data[:] = 0x99  # every weight is 9 - 8 = 1
zeros = openvino.Tensor(openvino.Type.u4, [rows, 1, 1])
zeros.data[:] = 0x88
difference = opset.subtract(opset.convert(opset.constant(codes), "f16"), opset.convert(opset.constant(zeros), "f16"))
scaled = opset.multiply(difference, opset.constant(np.ones((rows, 1, 1), np.float16)))
weight = opset.convert(opset.reshape(scaled, np.array([rows, columns]), False), "f32")
x = opset.parameter([-1, columns], np.float32)
model = openvino.Model([opset.matmul(x, weight, False, True)], [x])
settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}
compiled = openvino.Core().compile_model(model, "CPU", settings)

assert np.allclose(compiled(np.full((1, columns), 2.0**-121, np.float32))[0] * 2.0**121, 32, rtol=0.01)
assert (compiled(np.full((1, columns), 2.0**-122, np.float32))[0] < 0).all()  # expected 32 * 2**-122
