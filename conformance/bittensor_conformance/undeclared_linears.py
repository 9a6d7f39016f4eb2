"""The calls on group-quantized weights that a target must refuse because it does not declare them."""

from __future__ import annotations

from collections.abc import Callable

import bittensor
from bittensor import PreparedWeight, UnsupportedOperationError
from bittensor.backend import Backend

from .linear_cases import LinearCase, WeightCase
from .undeclared_calls import check_refused

_REFUSALS = (TypeError, ValueError, RuntimeError)


def run(operation: str, bits: int, target: str, announce: Callable[[str], None]) -> int:
    """Call an undeclared operation, or linear at an undeclared width: in public, and on a backend that checks."""
    backend, case = bittensor.get_backend(target), LinearCase(WeightCase(bits, 3, 9, 8), (2,))
    calls = 0
    if operation == "linear":
        text = f"bittensor.set_backend({target!r})\n# linear at {bits} bits, which is not declared"
        announce(text)
        with bittensor.use_backend(target):
            check_refused(case.call, (UnsupportedOperationError,), text)
        calls += 1
    declared = operation in backend.capabilities.operations
    if not declared and not hasattr(backend, operation):
        return calls
    if backend.capabilities.checks_arguments or not declared:
        text = f"bittensor.get_backend({target!r}).{operation}(...)\n# at {bits} bits, which is not declared"
        announce(text)
        check_refused(_direct(backend, operation, case), _REFUSALS, text)
        calls += 1
    return calls


def _direct(backend: Backend, operation: str, case: LinearCase) -> Callable[[], object]:
    weight, x = case.weight.quantized(), case.inputs["x"].tensor
    canonical = weight.canonical()
    if operation == "prepare":
        return lambda: backend.prepare(weight)
    if operation == "restore":
        return lambda: backend.restore(canonical)
    # Whatever layout the backend has: a weight that it cannot have prepared.
    held = PreparedWeight(canonical.form, backend.capabilities.layout, canonical.tensors)
    return lambda: backend.linear(x, held, None, case.mode, None)
