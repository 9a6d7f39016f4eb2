"""A case: everything that determines one call, in a dataclass that prints as Python and is stored as JSON.

`run` makes the call on a target and compares with the oracle. A case is built by hypothesis (strategies.py), read from
the corpus (corpus/*.json), or typed in by whoever debugs a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch

import bittensor

from . import oracle
from .compare import check_result, fail
from .fills import BiasFill, Fill
from .layouts import Placed, place
from .scripts import source

__all__ = ["BiasFill", "Fill", "MatmulCase", "PackCase", "ScaleFill", "UnpackCase"]

ScaleForm = Literal["float", "scalar", "one", "per_output", "lazily_negated"]


_RANDOM, _OTHER_RANDOM = Fill(), Fill(seed=1)


@dataclass(frozen=True)
class Snippet:
    """Lines that show what `target` and the reference return, and fail as long as the target is wrong.

    They are written when something has failed: to spell out every case that holds would cost more than to run it.
    """

    case: object
    target: str
    before: str = ""

    def __str__(self) -> str:
        return (
            f"{self.before}import bittensor\n"
            f"from {type(self.case).__module__} import *\n\n"
            f"case = {source(self.case)}\n"
            f"for backend in ('reference', {self.target!r}):\n"
            "    with bittensor.use_backend(backend):\n"
            "        print(backend, case.call())\n"
            f"case.run({self.target!r})"
        )


@dataclass(frozen=True)
class PackCase:
    """`bittensor.pack_weights` on codes of shape ``[*leading, columns]``."""

    bits: int
    columns: int
    leading: tuple[int, ...] = ()
    codes: Fill = _RANDOM
    layout: str = "contiguous"

    @cached_property
    def placed(self) -> Placed:
        return place(self.codes.codes((*self.leading, self.columns), self.bits), self.layout)

    @cached_property
    def expected(self) -> oracle.Words:
        return oracle.pack(self.placed.values, self.bits)

    def call(self) -> torch.Tensor:
        return bittensor.pack_weights(self.placed.tensor, self.bits)

    def run(self, target: str, before: str = "") -> None:
        """Pack on `target`, compare with the oracle, and see that the input is as it was."""
        text = Snippet(self, target, before)
        result = call_on(target, self, text)
        check_result(result, self.expected, what="pack", snippet=text, inputs=[self.placed.tensor])
        check_unmodified({"codes": self.placed}, text)


@dataclass(frozen=True)
class UnpackCase:
    """`bittensor.unpack_weights` on the words of ``[*leading, columns]`` codes, with `poison` in the unused bits."""

    bits: int
    columns: int
    leading: tuple[int, ...] = ()
    codes: Fill = _RANDOM
    layout: str = "contiguous"
    poison: int | None = None

    @cached_property
    def placed(self) -> Placed:
        words = oracle.pack(self.codes.codes((*self.leading, self.columns), self.bits), self.bits)
        return place(poisoned(words, self.columns, self.bits, self.poison), self.layout)

    @cached_property
    def expected(self) -> oracle.Codes:
        return oracle.unpack(self.placed.values, self.columns, self.bits)

    def call(self) -> torch.Tensor:
        return bittensor.unpack_weights(self.placed.tensor, self.columns, self.bits)

    def run(self, target: str, before: str = "") -> None:
        """Unpack on `target`, compare with the oracle, and see that the input is as it was."""
        text = Snippet(self, target, before)
        result = call_on(target, self, text)
        check_result(result, self.expected, what="unpack", snippet=text, inputs=[self.placed.tensor])
        check_unmodified({"words": self.placed}, text)


@dataclass(frozen=True)
class ScaleFill:
    """A scale: a Python float, a tensor ``[]`` or ``[1]``, or one value per output, drawn from `values` by `seed`.

    The form "lazily_negated" is ``[N]`` with torch's negation bit set, as the imaginary part of a conjugate has it:
    its memory holds the negative of what it means.
    """

    form: ScaleForm = "scalar"
    values: tuple[float, ...] = (1.0,)
    seed: int = 0
    layout: str = "contiguous"

    def array(self, outputs: int) -> oracle.Scales:
        values: oracle.Scales = np.array(self.values, dtype=np.float32)
        if self.form in ("float", "scalar"):
            return np.array(values[0], dtype=np.float32)
        if self.form == "one":
            return values[:1]
        if len(values) == outputs:
            return values
        chosen: oracle.Scales = values[np.random.default_rng(self.seed).integers(0, len(values), outputs)]
        return chosen

    def place(self, outputs: int) -> Placed:
        values = self.array(outputs)
        if self.form != "lazily_negated":
            return place(values, self.layout if values.ndim else "contiguous")
        conjugate = torch.complex(torch.zeros(outputs), torch.from_numpy(-values)).conj()
        assert conjugate.imag.is_neg()
        return Placed(conjugate.imag, values, values, values.tobytes())


@dataclass(frozen=True)
class MatmulCase:
    """`bittensor.packed_matmul` of x ``[*leading, k]`` and weight ``[n, k]``.

    Attributes:
        packed_x: x is handed over as int64 words.
        poison: seed of the garbage in the unused bits of every packed input; None leaves them 0.
        accumulator: ask for ``out_dtype=torch.int32``.
    """

    bits: int
    k: int
    n: int
    leading: tuple[int, ...] = (1,)
    x: Fill = _RANDOM
    weight: Fill = _OTHER_RANDOM
    bias: BiasFill | None = None
    scale: ScaleFill | None = None
    x_zero: int = 0
    weight_zero: int = 0
    out_zero: int = 0
    packed_x: bool = False
    accumulator: bool = False
    poison: int | None = None
    x_layout: str = "contiguous"
    weight_layout: str = "contiguous"
    bias_layout: str = "contiguous"

    @cached_property
    def placed(self) -> dict[str, Placed]:
        """Every tensor argument by name."""
        x = self.x.codes((*self.leading, self.k), self.bits)
        weight = oracle.pack(self.weight.codes((self.n, self.k), self.bits), self.bits)
        placed = {"weight": place(poisoned(weight, self.k, self.bits, self.poison), self.weight_layout)}
        if self.packed_x:
            words = oracle.pack(x, self.bits)
            placed["x"] = place(poisoned(words, self.k, self.bits, self.poison), self.x_layout)
        else:
            placed["x"] = place(x, self.x_layout)
        if self.scale is not None:
            placed["scale"] = self.scale.place(self.n)
        if self.bias is not None:
            placed["bias"] = place(self._bias(placed), self.bias_layout)
        return placed

    def _codes(self, placed: dict[str, Placed]) -> tuple[oracle.Codes, oracle.Codes]:
        """Codes of x and weight as they lie in memory: overlapping layouts do not hold what was asked for."""
        x = placed["x"].values
        return (
            oracle.unpack(x, self.k, self.bits) if self.packed_x else x,
            oracle.unpack(placed["weight"].values, self.k, self.bits),
        )

    def _bias(self, placed: dict[str, Placed]) -> np.ndarray[Any, Any]:
        assert self.bias is not None
        x, weight = self._codes(placed)
        first_row = oracle.accumulate(x.reshape(prod(self.leading), self.k)[:1], weight, self.x_zero, self.weight_zero)
        first = first_row[0] if len(first_row) else np.zeros(self.n, dtype=np.int64)
        limit = oracle.INT32_MAX - oracle.accumulator_limit(self.k, self.bits, self.x_zero, self.weight_zero)
        values = self.bias.integers(first, self.bits, limit, self._reach(placed))
        return values.astype(np.uint8 if self.bias.style == "uint8" and self.bias.values is None else np.int32)

    def _reach(self, placed: dict[str, Placed]) -> int:
        """Accumulators up to here, and a little beyond, give results that are not saturated."""
        top = oracle.largest_code(self.bits) + 2
        smallest = min((abs(float(s)) for s in placed["scale"].values.flat if s), default=1.0) if self.scale else 1.0
        return int(min(top / smallest, oracle.INT32_MAX))

    @cached_property
    def expected(self) -> oracle.Accumulators | oracle.Words:
        """What the oracle returns: the accumulator, or packed codes."""
        x, weight = self._codes(self.placed)
        bias = self.placed["bias"].values.astype(np.int64) if self.bias is not None else None
        acc = oracle.accumulate(x, weight, self.x_zero, self.weight_zero, bias)
        if self.accumulator:
            assert not acc.size or np.abs(acc).max() <= oracle.INT32_MAX + 1
            return acc.astype(np.int32)
        if self.scale is None:
            return oracle.pack(oracle.saturate(acc, self.bits), self.bits)
        codes = oracle.requantize(acc, self.bits, self.placed["scale"].values.astype(np.float32), self.out_zero)
        return oracle.pack(codes, self.bits)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `bittensor.packed_matmul`."""
        placed = self.placed
        scale: torch.Tensor | float | None = placed["scale"].tensor if self.scale is not None else None
        if self.scale is not None and self.scale.form == "float":
            scale = float(self.scale.array(self.n))
        return {
            "x": placed["x"].tensor,
            "weight": placed["weight"].tensor,
            "bias": placed["bias"].tensor if self.bias is not None else None,
            "bits": self.bits,
            "in_features": self.k if self.packed_x else None,
            "x_zero": self.x_zero,
            "weight_zero": self.weight_zero,
            "scale": scale,
            "out_zero": self.out_zero,
            "out_dtype": torch.int32 if self.accumulator else None,
        }

    def tensors(self) -> dict[str, Any]:
        """The tensors among the arguments."""
        return {name: each.tensor for name, each in self.placed.items()}

    def call(self, **changes: Any) -> torch.Tensor:
        """The public function on the current backend, with `changes` of its arguments."""
        return bittensor.packed_matmul(**{**self.arguments(), **changes})

    def run(self, target: str, before: str = "") -> None:
        """Multiply on `target`, compare with the oracle, and see that the inputs are as they were."""
        text = Snippet(self, target, before)
        result = call_on(target, self, text)
        tensors = [each.tensor for each in self.placed.values()]
        check_result(result, self.expected, what="packed_matmul", snippet=text, inputs=tensors)
        check_unmodified(self.placed, text)


Case: TypeAlias = PackCase | UnpackCase | MatmulCase


class Callable(Protocol):
    """A case that ends in one call, whose result is a tensor."""

    @property
    def expected(self) -> object: ...

    def call(self) -> torch.Tensor: ...


def call_on(target: str, case: Callable, text: object) -> torch.Tensor:
    """The case's call on `target`; an exception is a failure with the lines that reproduce it."""
    assert case.expected is not None  # worked out first: what goes wrong there is not the target's fault
    try:
        with bittensor.use_backend(target):
            return case.call()
    except Exception as error:
        fail(f"expected a result, got {type(error).__name__}: {error}", text)


def poisoned(words: oracle.Words, columns: int, bits: int, seed: int | None) -> oracle.Words:
    """The words with garbage in their unused bits, unless `seed` is None."""
    return words if seed is None else oracle.poison(words, columns, bits, seed)


def check_unmodified(placed: Mapping[str, Placed], text: object) -> None:
    """Fail if a byte of an input has changed, or of the memory around it."""
    for name, each in placed.items():
        if not each.is_unmodified():
            fail(f"{name}: the call wrote to its input, or to the memory around it", text)
