"""The calls on group-quantized weights that a target must refuse because it does not declare them."""

from __future__ import annotations

from collections.abc import Iterator

import bittensor

from .linear_cases import LinearCase, WeightCase
from .scripts import Script
from .undeclared_calls import PUBLIC, direct


def calls(operation: str, bits: int, target: str) -> Iterator[Script]:
    """An undeclared operation, or linear at an undeclared width: in public, and on a backend that checks."""
    backend, case = bittensor.get_backend(target), LinearCase(WeightCase(bits, 3, 9, 8), (2,))
    if operation == "linear":
        yield PUBLIC, {"case": case}
    declared = operation in backend.capabilities.operations
    if not declared and not hasattr(backend, operation):
        return
    if backend.capabilities.checks_arguments or not declared:
        # A gradient of the shape of the result of a weight [9, 9].
        square = LinearCase(WeightCase(bits, 9, 9, 8), (2,))
        yield direct(operation), {"case": square if operation == "linear_input_grad" else case}
