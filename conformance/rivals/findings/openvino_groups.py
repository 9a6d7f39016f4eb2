"""Groups of 48, 72, 88 or 112 columns, and others: with up to 4 rows, groups are given the scales of others.

Library: openvino
Verdict: wrong
Promise: the pattern of its own weight compression, of which group sizes are a parameter; the same model is right from 5
    rows on, and with groups of 8, 16, 32, 64 or 128, the last three of which are what is commonly used.
Checks: float_every_shape float_lies_within float_of_any_layout
Seen: Intel Xeon with AMX, AMD Zen 4, AMD Zen 5

On the Xeon with 4 bits at 40, 48, 56, 72, 80, 88, 112, 120 and 200, and with 2 bits at 72, 80, 88, 96, 112, 120, 160,
200 and 224; not with 8 bits. Where activations are quantized, the result is right if groups are multiples of 16. With
the execution mode hint ACCURACY instead of the precision, it is wrong on Zen 5, and right on the Xeon unless the
variable ONEDNN_MAX_CPU_ISA is AVX512_CORE_BF16 or less. There is no error and no warning.
"""

import numpy as np
import openvino
from openvino import opset13 as opset

outputs, groups, group = 16, 2, 48
codes = openvino.Tensor(openvino.Type.u4, [outputs, groups, group])
codes.data[:] = 0x99  # all codes are 9
zeros = openvino.Tensor(openvino.Type.u4, [outputs, groups, 1])
zeros.data[:] = 0x88
scales = np.tile(np.array([1, 2], np.float16).reshape(1, groups, 1), (outputs, 1, 1))
difference = opset.subtract(opset.convert(opset.constant(codes), "f16"), opset.convert(opset.constant(zeros), "f16"))
scaled = opset.multiply(difference, opset.constant(scales))  # 48 ones, then 48 twos
weight = opset.convert(opset.reshape(scaled, np.array([outputs, groups * group]), False), "f32")
x = opset.parameter([-1, groups * group], np.float32)
model = openvino.Model([opset.matmul(x, weight, False, True)], [x])
settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
compiled = openvino.Core().compile_model(model, "CPU", settings)

ones = np.ones((5, groups * group), np.float32)
assert (compiled(ones)[0] == 48 + 2 * 48).all()
assert (compiled(ones[:4])[0] == 48 + 48).all()  # expected 144 as well: both groups were scaled by 1
