"""What happens for real while torch traces or transforms a program: choosing a backend, preparing a weight."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes


def run_now(function: Callable[..., object], *arguments: object) -> None:
    """Call `function` while torch.compile traces the caller, then have it trace from the start.

    The trace then finds what the function changed, and the compiled program depends on that alone.
    """
    # Before 2.12, torch passes numbers to such a function, but no objects.
    _run_now(function, *[id(argument) for argument in arguments])


def _run_now(function: Callable[..., object], *identities: int) -> None:
    from torch._dynamo.exc import RestartAnalysis
    from torch._dynamo.symbolic_convert import InstructionTranslator

    # The program that is traced holds the objects.
    function(*[ctypes.cast(identity, ctypes.py_object).value for identity in identities])
    # The log of the decisions so far, by which the next trace would be checked.
    InstructionTranslator.current_tx().speculation_log.clear()
    raise RestartAnalysis(restart_reason=f"{function.__name__} has run")


# What torch.compiler.assume_constant_result does, but for importing the compiler, which takes as long as torch itself.
_run_now._dynamo_marked_constant = True  # type: ignore[attr-defined]


def never_compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function`, which torch.compile leaves out: torch.compiler.disable, but without importing the compiler."""
    call = torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function  # type: ignore[no-untyped-call]
    return call(*arguments)


never_compiled._torchdynamo_disable = True  # type: ignore[attr-defined]  # the mark on what programs may not call


@contextmanager
def outside_of_traces() -> Iterator[None]:
    """A context in which tensors are real, also where torch.export runs this code on fake ones."""
    with _disable_current_modes(), outside_of_transforms():
        yield


def outside_of_transforms() -> AbstractContextManager[Any]:
    """A context in which new tensors belong to no transform of torch.func, and so may outlive it."""
    return torch._C._DisableFuncTorch()
