"""The calls on group-quantized weights that a target must refuse because it does not declare them."""

from __future__ import annotations

from collections.abc import Callable

import bittensor

from .linear_cases import LinearCase, WeightCase
from .undeclared_calls import direct, refuse

_PUBLIC = """
with refused(bittensor.UnsupportedOperationError):
    case.call()
"""


def run(operation: str, bits: int, target: str, announce: Callable[[str], None]) -> int:
    """Call an undeclared operation, or linear at an undeclared width: in public, and on a backend that checks."""
    backend, case = bittensor.get_backend(target), LinearCase(WeightCase(bits, 3, 9, 8), (2,))
    calls = 0
    if operation == "linear":
        refuse(target, _PUBLIC, case, announce)
        calls += 1
    declared = operation in backend.capabilities.operations
    if not declared and not hasattr(backend, operation):
        return calls
    if backend.capabilities.checks_arguments or not declared:
        # A gradient of the shape of the result of a weight [9, 9].
        square = LinearCase(WeightCase(bits, 9, 9, 8), (2,))
        refuse(target, direct(operation), square if operation == "linear_input_grad" else case, announce)
        calls += 1
    return calls
