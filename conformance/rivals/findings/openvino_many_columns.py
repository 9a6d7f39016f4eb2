"""Groups that are no power of two, and more than 1024 columns: some groups are given the scales of others.

Library: openvino
Verdict: wrong
Promise: the pattern of its own weight compression, of which group sizes are a parameter; the same model is right with
    groups of 8, 16, 32, 64, 128 or 256 and up to 14336 columns, and from 5 rows on with up to 9 groups of 120.
Checks: int8_many_groups float_every_tail
Seen: Intel Xeon with AMX, AMD Zen 4

Whatever the number of rows, with 2, 4 and 8 bits. Seen from 1144 columns on, in 13 groups of 88; not with every number
of groups: 12 groups of 120 are right. Where activations are quantized, the result is right if groups are multiples of
16. Without settings, which here means bfloat16, this model is right from 5 rows on, with the execution mode hint
ACCURACY always. With the variable ONEDNN_MAX_CPU_ISA at AVX512_CORE_BF16, both are wrong as well. There is no error and
no warning.
"""

import numpy as np
import openvino
from openvino import opset13 as opset

outputs, groups, group = 16, 10, 120
codes = openvino.Tensor(openvino.Type.u4, [outputs, groups, group])
codes.data[:] = 0x99  # all codes are 9
zeros = openvino.Tensor(openvino.Type.u4, [outputs, groups, 1])
zeros.data[:] = 0x88
scales = np.tile(np.arange(1, 11, dtype=np.float16).reshape(1, groups, 1), (outputs, 1, 1))
difference = opset.subtract(opset.convert(opset.constant(codes), "f16"), opset.convert(opset.constant(zeros), "f16"))
scaled = opset.multiply(difference, opset.constant(scales))  # 120 ones, 120 twos, ..., 120 tens
weight = opset.convert(opset.reshape(scaled, np.array([outputs, groups * group]), False), "f32")
x = opset.parameter([-1, groups * group], np.float32)
model = openvino.Model([opset.matmul(x, weight, False, True)], [x])
settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
compiled = openvino.Core().compile_model(model, "CPU", settings)

x = np.zeros((5, groups * group), np.float32)
x[:, -120] = 1  # selects the first column of the last group, whose weights are 10
assert (compiled(x)[0] == 9).all()  # expected 10; 9 is the scale of the group before
