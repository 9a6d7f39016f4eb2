"""The calls that a target must refuse because it does not declare them."""

from __future__ import annotations

from collections.abc import Callable

import bittensor

from .cases import MatmulCase, PackCase, UnpackCase
from .scripts import run_body, script

_PUBLIC = """
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


def run(operation: str, bits: int, target: str, announce: Callable[[str], None]) -> int:
    """Make an undeclared call through the public function, and on a backend that checks its own arguments."""
    cases = {"pack": PackCase(bits, 5, (2,)), "unpack": UnpackCase(bits, 5, (2,))}
    case = cases.get(operation, MatmulCase(bits, 5, 3, (2,)))
    refuse(target, _PUBLIC, case, announce)
    if bittensor.get_backend(target).capabilities.checks_arguments:
        refuse(target, direct(operation), case, announce)
        return 2
    return 1


def direct(operation: str) -> str:
    """A script in which the backend itself must refuse to do it for `case`."""
    lines = ["backend = bittensor.current_backend()"]
    if operation.startswith("linear"):
        lines.append("weight = replace(case.weight.quantized().canonical(), layout=backend.capabilities.layout)")
    return "\n".join([*lines, f"with refused(TypeError, ValueError, RuntimeError):\n    {_DIRECT[operation]}"])


def refuse(target: str, body: str, case: object, announce: Callable[[str], None]) -> None:
    """Run a script that holds if the call is refused, and announce it before: it may end the process."""
    announce(script(target, body, {"case": case}))
    run_body(target, body, {"case": case})
