"""onnxruntime's MatMulNBits, the operator that its int4 models are made of.

- accuracy_level 4: activations become int8 in blocks of the group size, the fastest level. Scales are float32, which
  its int8 kernels take, and the weight is a constant, which is packed once, when the session is made.
- Input and output are bound once (`io_binding`): a call neither copies nor allocates.
- The threads of a session spin while they wait, which is the default and the fastest. With a pool for each session,
  the pools of weights that are used in turn would spin against each other: all sessions share one pool instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnxruntime
import torch
from bittensor_rivals.onnxruntime_nbits import model

from .peer import Cell, Peer, Weight


class OnnxruntimeMatMulNBits(Peer):
    name = "onnxruntime int4"
    weight_bits = 4
    activations = "int8"
    tolerance = 0.02
    packages = ("onnxruntime", "onnx")

    def unsupported(self, cell: Cell) -> str | None:
        size = cell.group_size
        return None if size >= 16 and size & (size - 1) == 0 else "groups whose size is not a power of two from 16"

    def build(self, weight: Weight, x: torch.Tensor, threads: int) -> Callable[[], object]:
        share_threads(threads)
        options = onnxruntime.SessionOptions()
        options.use_per_session_threads = False
        source = model(weight.blocks, weight.shape[1], bits=4, accuracy_level=4, rows=len(x))
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        x_value = onnxruntime.OrtValue.ortvalue_from_numpy(x.numpy())
        y_value = onnxruntime.OrtValue.ortvalue_from_shape_and_type([len(x), weight.shape[0]], np.float32)
        binding.bind_ortvalue_input("x", x_value)
        binding.bind_ortvalue_output("y", y_value)

        def multiply(memory_in_use: object = (x_value, y_value)) -> object:
            session.run_with_iobinding(binding)
            return y_value

        return multiply


@cache
def share_threads(threads: int) -> None:
    """One pool for all sessions. Its size is that of the first call; onnxruntime refuses another in this process."""
    onnxruntime.set_global_thread_pool_sizes(threads, 1)


PEERS = [OnnxruntimeMatMulNBits()]
