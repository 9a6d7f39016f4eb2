"""A NaN in x disappears without any setting.

Library: openvino
Verdict: silent
Promise: none is made.
Seen: AMD Zen 4, AMD Zen 5
Unseen: Intel Xeon with AMX

Without settings, activations are quantized on the one processor, and rounded to bfloat16 on the other, where a NaN
makes its row NaN.
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
default = openvino.Core().compile_model(model, "CPU")
assert np.isfinite(default(values)[0]).all()
