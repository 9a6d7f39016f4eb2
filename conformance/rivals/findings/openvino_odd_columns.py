"""An odd number of columns of 4 bits: from 5 rows on, the last is multiplied by the weight 16 columns before.

Library: openvino
Verdict: wrong
Promise: u4 constants pack two values into a byte and may have any shape; the same model is right for up to 4 rows.
Checks: float_small_integers_are_exact float_lies_within float_of_any_layout float_every_shape float_every_tail
    int8_every_shape int8_matches_the_oracle linear_stays_inside linear_of_equal_rows linear_of_split_batch
    linear_of_split_outputs
Seen: Intel Xeon with AMX, AMD Zen 4, AMD Zen 5

Only rows of one group can have an odd number of columns in the contract; layers of models rarely do. With 2 bits it is
columns that are no multiple of 4. There is no error and no warning.
"""

import numpy as np
import openvino
from openvino import opset13 as opset

columns = 17
codes = openvino.Tensor(openvino.Type.u4, [2, columns])
codes.data[:] = 0x99
codes.data.flat[0] = 0x95  # the first code is 5, all others are 9
zero = openvino.Tensor(openvino.Type.u4, [2, 1])
zero.data[:] = 0x88
difference = opset.subtract(opset.convert(opset.constant(codes), "f16"), opset.convert(opset.constant(zero), "f16"))
weight = opset.convert(opset.multiply(difference, opset.constant(np.ones((2, 1), np.float16))), "f32")  # -3, 1, 1, ...
x = opset.parameter([-1, columns], np.float32)
model = openvino.Model([opset.matmul(x, weight, False, True)], [x])
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

last = np.eye(columns, dtype=np.float32)[-1:]  # selects the weight of the last column, which is 1
assert (compiled(last.repeat(4, axis=0))[0] == 1).all()
assert (compiled(last.repeat(5, axis=0))[0][:, 0] == -3).all()  # expected 1; -3 is the weight of the first column
