"""A weight that is larger than what float32 holds becomes infinite: tiny x give infinity, and x of zeros gives NaN.

Library: openvino
Verdict: differs
Promise: none is made. The model multiplies codes by scales in float32, so that infinity is what it says, and 0 times
    infinity is NaN. Ours multiplies sums of codes by the scale, and gives 0. A single row gives 0 here as well.
Checks: int8_every_magnitude
Seen: Intel Xeon with AMX, AMD Zen 4

Scales from 2^121 on, at 8 bits, are no model's.
"""

import numpy as np
import openvino
from openvino import opset13 as opset

outputs, columns = 16, 32
codes = opset.constant(np.full((outputs, 1, columns), 255, np.uint8))
zeros = opset.constant(np.full((outputs, 1, 1), 128, np.uint8))
difference = opset.subtract(opset.convert(codes, "f32"), opset.convert(zeros, "f32"))  # 127
scaled = opset.multiply(difference, opset.constant(np.full((outputs, 1, 1), 2.0**122, np.float32)))
weight = opset.reshape(scaled, np.array([outputs, columns]), False)
x = opset.parameter([-1, columns], np.float32)
model = openvino.Model([opset.matmul(x, weight, False, True)], [x])
settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
compiled = openvino.Core().compile_model(model, "CPU", settings)

zero = np.zeros((4, columns), np.float32)
assert np.isposinf(compiled(zero + np.float32(2.0**-100))[0]).all()  # the sum itself is 32 * 127 * 2^22
assert np.isnan(compiled(zero)[0]).all()
