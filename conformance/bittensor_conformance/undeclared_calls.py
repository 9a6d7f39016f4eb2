"""The calls that a target must refuse because it does not declare them."""

from __future__ import annotations

from collections.abc import Iterator

import bittensor

from .cases import MatmulCase, PackCase, UnpackCase
from .scripts import Script

PUBLIC = """
with refused(bittensor.UnsupportedOperationError):
    case.call()
"""
_DIRECT = {
    "pack": "backend.pack(case.placed.tensor, case.bits)",
    "unpack": "backend.unpack(case.placed.tensor, case.columns, case.bits)",
    "packed_matmul": "backend.packed_matmul(**case.arguments())",
    "prepare": "backend.prepare(case.weight.quantized())",
    "restore": "backend.restore(case.weight.quantized().canonical())",
    # Whatever layout the backend has: a weight that it cannot have prepared.
    "linear": "backend.linear(case.inputs['x'].tensor, weight, None, case.mode, None)",
    "linear_input_grad": "backend.linear_input_grad(case.inputs['x'].tensor, weight)",
}


def calls(operation: str, bits: int, target: str) -> Iterator[Script]:
    """An undeclared call through the public function, and on a backend that checks its own arguments."""
    cases = {"pack": PackCase(bits, 5, (2,)), "unpack": UnpackCase(bits, 5, (2,))}
    case = cases.get(operation, MatmulCase(bits, 5, 3, (2,)))
    yield PUBLIC, {"case": case}
    if bittensor.get_backend(target).capabilities.checks_arguments:
        yield direct(operation), {"case": case}


def direct(operation: str) -> str:
    """A script in which the backend itself must refuse to do it for `case`."""
    lines = ["backend = bittensor.current_backend()"]
    if operation.startswith("linear"):
        lines.append("weight = replace(case.weight.quantized().canonical(), layout=backend.capabilities.layout)")
    return "\n".join([*lines, f"with refused(TypeError, ValueError, RuntimeError):\n    {_DIRECT[operation]}"])
