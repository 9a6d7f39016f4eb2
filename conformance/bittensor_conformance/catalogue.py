"""The list of all checks, from which a run's denominators are counted.

A check is a test function in a chapter, declared with `check`: the operation it belongs to, and what it applies to. The
number of checks a target owes follows from this list and from its capabilities alone, not from what pytest collected,
so that a check that was lost on the way shows as missing.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

from bittensor.backend import EMBEDDING_OPERATIONS, GRADIENT_OPERATIONS, OPERATIONS, WEIGHT_OPERATIONS, Capabilities
from bittensor.codes import SUPPORTED_BITS
from bittensor.prepared_weight import GROUP_BITS

from . import chapters
from .targets import Target

F = TypeVar("F", bound=Callable[..., None])

_ON_WEIGHTS = (*WEIGHT_OPERATIONS, *GRADIENT_OPERATIONS, *EMBEDDING_OPERATIONS)

PROTOCOL = "protocol"
"""What a check belongs to if it is about the backend as a whole."""

_INT8_LINEAR = "docs/numerics.md#4-linear-with-int8-activations"
_FLOAT_LINEAR = "docs/numerics.md#5-linear-with-float-activations"
_BESIDE_LINEAR: Mapping[str, str] = {
    "8_transformer": "docs/numerics.md#8-what-lies-between-the-linears-of-a-transformer",
    "10_convolution": "docs/numerics.md#10-convolution",
}
"""Chapters about what backends compute with their linear."""

SECTIONS: Mapping[str, str] = {
    PROTOCOL: "docs/backends.md#the-protocol",
    "pack": "docs/numerics.md#1-packed-words",
    "unpack": "docs/numerics.md#1-packed-words",
    "packed_matmul": "docs/numerics.md#2-integer-matrix-product",
    "prepare": "docs/numerics.md#3-group-quantized-weights",
    "restore": "docs/numerics.md#3-group-quantized-weights",
    "linear": _INT8_LINEAR,
    "linear_input_grad": "docs/numerics.md#6-gradients",
    "embedding": "docs/numerics.md#9-embedding",
}
"""The section of the documentation that says what an operation owes."""


@dataclass(frozen=True)
class Instance:
    """A check on one target: its id, and the arguments of its test function.

    Attributes:
        id: ``chapter/check[case,4-bit]``; the same on every target, and what a file of expected failures names.
        operation: the capability that the check covers, with `bits`; None if it is not about one width.
        section: where the documentation says what is checked.
        searches: draws examples, as many as the profile says or until its time is over.
    """

    id: str
    operation: str
    bits: int | None
    section: str
    searches: bool
    arguments: Mapping[str, Any] = field(compare=False, default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A declared check, before it is applied to a target."""

    chapter: str
    name: str
    operation: str
    per_bits: bool
    widths: tuple[int, ...]
    cases: Mapping[str, Any] | None
    undeclared: bool
    variants_only: bool
    requires: tuple[str, ...]
    applies: Callable[[Capabilities, Any], bool]
    searches: bool

    def instances(self, capabilities: Capabilities, is_variant: bool) -> Iterator[Instance]:
        """What a target with these capabilities owes."""
        if (self.variants_only and not is_variant) or not set(self.requires) <= capabilities.operations:
            return
        for bits in self._widths(capabilities):
            for case, value in (self.cases or {"": None}).items():
                if not self.applies(capabilities, value):
                    continue
                parts = [part for part in (case, f"{bits}-bit" if bits is not None else "") if part]
                suffix = f"[{','.join(parts)}]" if parts else ""
                arguments: dict[str, Any] = {} if bits is None else {"bits": bits}
                if self.cases is not None:
                    arguments["case"] = value
                check_id, section = f"{self.chapter}/{self.name}{suffix}", self._section(value)
                yield Instance(check_id, self.operation, bits, section, self.searches, arguments)

    def _section(self, case: Any) -> str:
        if self.chapter in _BESIDE_LINEAR:
            return _BESIDE_LINEAR[self.chapter]
        floats = case == "float" or (self.chapter.startswith("5_") and case != "int8")
        return _FLOAT_LINEAR if self.operation == "linear" and floats else SECTIONS[self.operation]

    def _widths(self, capabilities: Capabilities) -> list[int | None]:
        declared = self.operation == PROTOCOL or self.operation in capabilities.operations
        offered = capabilities.linear_bits if self.operation in _ON_WEIGHTS else capabilities.bits
        if self.undeclared:
            return [bits for bits in self.widths if not (declared and bits in offered)]
        if not declared:
            return []
        return [bits for bits in self.widths if bits in offered] if self.per_bits else [None]


CATALOGUE: dict[str, Check] = {}
"""Every check by ``chapter/name``. Filled when the chapters are imported."""


def check(
    operation: str,
    *,
    widths: tuple[int, ...] | None = None,
    cases: Mapping[str, Any] | None = None,
    undeclared: bool = False,
    variants_only: bool = False,
    requires: tuple[str, ...] = (),
    applies: Callable[[Capabilities, Any], bool] = lambda capabilities, case: True,
) -> Callable[[F], F]:
    """Declare a test function of a chapter as a check.

    The function takes `target`; with a parameter `bits` it is run for each width that is declared, with a parameter
    `case` for each of `cases`.

    Args:
        operation: one of `bittensor.backend.OPERATIONS`, or `PROTOCOL`.
        widths: bit widths at which the check has a meaning; None for all that the operation can have.
        cases: values by name.
        undeclared: run for the operations and widths that are *not* declared, instead of those that are.
        variants_only: run on variants (``cpp:avx2``) only.
        requires: further operations without which the check has no meaning.
        applies: whether capabilities make the check, or that one of its cases, due. True unless it is given.
    """
    if operation not in (*OPERATIONS, PROTOCOL):
        raise ValueError(f"operation: expected one of {[*OPERATIONS, PROTOCOL]}, got {operation!r}")

    if widths is None:
        widths = GROUP_BITS if operation in _ON_WEIGHTS else SUPPORTED_BITS

    def declare(function: F) -> F:
        parameters = inspect.signature(function).parameters
        chapter = function.__module__.rpartition(".")[2].removeprefix("test_")
        name = function.__name__.removeprefix("test_")
        if ("case" in parameters) != (cases is not None):
            raise TypeError(f"{function.__name__}: a parameter 'case' and cases= go together")
        CATALOGUE[f"{chapter}/{name}"] = Check(
            chapter,
            name,
            operation,
            "bits" in parameters,
            widths,
            cases,
            undeclared,
            variants_only,
            requires,
            applies,
            searches=Target.for_all.__name__ in function.__code__.co_names,
        )
        return function

    return declare


def find(module: str, function: str) -> Check | None:
    """The check that a test function declares, None if it is not one."""
    chapter = module.rpartition(".")[2].removeprefix("test_")
    return CATALOGUE.get(f"{chapter}/{function.removeprefix('test_')}")


def load_chapters() -> None:
    """Import every chapter, so that the catalogue is complete without pytest."""
    for chapter in pkgutil.iter_modules(chapters.__path__, f"{chapters.__name__}."):
        import_module(chapter.name)
