"""The calls that a target must refuse because it does not declare them."""

from __future__ import annotations

from collections.abc import Callable

import torch

import bittensor
from bittensor import UnsupportedOperationError

from . import oracle
from .cases import MatmulCase
from .compare import fail


def run(operation: str, bits: int, target: str, announce: Callable[[str], None]) -> int:
    """Make an undeclared call through the public function, and on a backend that checks its own arguments."""
    codes = torch.zeros((2, 5), dtype=torch.uint8)
    words = torch.zeros((2, oracle.word_count(5, bits)), dtype=torch.int64)
    product = MatmulCase(bits, 5, 3, (2,)).arguments()
    public: dict[str, Callable[[], object]] = {
        "pack": lambda: bittensor.pack_weights(codes, bits),
        "unpack": lambda: bittensor.unpack_weights(words, 5, bits),
        "packed_matmul": lambda: bittensor.packed_matmul(**product),
    }
    backend = bittensor.get_backend(target)
    direct: dict[str, Callable[[], object]] = {
        "pack": lambda: backend.pack(codes, bits),
        "unpack": lambda: backend.unpack(words, 5, bits),
        "packed_matmul": lambda: backend.packed_matmul(**product),
    }
    text = f"bittensor.set_backend({target!r})\n# {operation} at {bits} bits, which is not declared"
    announce(text)
    with bittensor.use_backend(target):
        check_refused(public[operation], (UnsupportedOperationError,), text)
    if backend.capabilities.checks_arguments:
        text = f"bittensor.get_backend({target!r}).{operation}(...)\n# at {bits} bits, which is not declared"
        announce(text)
        check_refused(direct[operation], (TypeError, ValueError, RuntimeError), text)
        return 2
    return 1


def check_refused(call: Callable[[], object], errors: tuple[type[Exception], ...], text: str) -> None:
    """Fail unless the call raises one of `errors`."""
    expected = " or ".join(error.__name__ for error in errors)
    try:
        call()
    except errors:
        return
    except Exception as error:
        fail(f"expected {expected}, got {type(error).__name__}: {error}", text)
    fail(f"expected {expected}, but the call returned", text)
