"""Cases of section 3 to 5 of docs/numerics.md: a group-quantized weight, and a linear with it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from typing import Any, Literal, get_args

import numpy as np
import torch

import bittensor
from bittensor.backend import Capabilities

from . import oracle, oracle_linear
from .cases import call_on, check_unmodified, poisoned, snippet
from .compare import check_floats, check_within
from .fills import Fill
from .float_fills import FloatFill
from .layouts import Placed, place
from .oracle_linear import FloatDtype, Floats, ZeroKind

__all__ = ["BoundedLinearCase", "Fill", "FloatFill", "LinearCase", "WeightCase"]

Mode = Literal["int8", "float"]
Special = Literal["nan", "inf", "-inf"]
SPECIALS: tuple[Special, ...] = get_args(Special)

TORCH_DTYPES: dict[FloatDtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_CODES, _ZEROS = Fill(), Fill(seed=1)
_SCALES, _OFFSETS, _X = FloatFill(seed=2, factor=0.1), FloatFill(seed=3), FloatFill(seed=4)


def place_floats(values: Floats, dtype: FloatDtype, layout: str) -> Placed:
    """A tensor of `dtype` that holds `values`, in the named layout; `Placed.values` are float32."""
    if dtype != "bfloat16":
        placed = place(values.astype(dtype), layout)
        return Placed(placed.tensor, placed.values.astype(np.float32), placed.parent, placed.before)
    # NumPy has no bfloat16: its bits are placed, the upper half of float32's.
    placed = place((values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.int16), layout)
    widened = (placed.values.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return Placed(placed.tensor.view(torch.bfloat16), widened, placed.parent, placed.before)


@dataclass(frozen=True)
class WeightCase:
    """A group-quantized weight ``[n, k]``; running it prepares and restores it.

    Attributes:
        group_size: None for one group a row.
        zeros, offsets: used for the zero kind that needs them. An integer zero kind draws `zeros` as codes.
        poison: seed of the garbage in the unused bits of the words; None leaves them 0.
        layout: of every tensor.
    """

    bits: int
    n: int
    k: int
    group_size: int | None = None
    zero: ZeroKind = "symmetric"
    scale_dtype: FloatDtype = "float32"
    codes: Fill = _CODES
    scales: FloatFill = _SCALES
    zeros: Fill = _ZEROS
    offsets: FloatFill = _OFFSETS
    poison: int | None = None
    layout: str = "contiguous"

    @property
    def groups(self) -> int:
        return -(-self.k // (self.group_size or self.k))

    @cached_property
    def placed(self) -> dict[str, Placed]:
        """The tensors of the weight by name."""
        grouped = (self.n, self.groups)
        words = oracle.pack(self.codes.codes((self.n, self.k), self.bits), self.bits)
        placed = {"words": place(poisoned(words, self.k, self.bits, self.poison), self.layout)}
        placed["scales"] = place_floats(self.scales.floats(grouped, self.scale_dtype), self.scale_dtype, self.layout)
        if self.zero == "integer":
            placed["zeros"] = place(self.zeros.codes(grouped, self.bits), self.layout)
        if self.zero == "float":
            offsets = self.offsets.floats(grouped, self.scale_dtype)
            placed["offsets"] = place_floats(offsets, self.scale_dtype, self.layout)
        return placed

    @cached_property
    def weight(self) -> oracle_linear.Weight:
        """The oracle's view of it: what lies in memory."""
        values = {name: each.values for name, each in self.placed.items()}
        codes = oracle.unpack(values["words"], self.k, self.bits)
        size = self.group_size or self.k
        return oracle_linear.Weight(
            codes, values["scales"], values.get("zeros"), values.get("offsets"), self.bits, size
        )

    def quantized(self, **changes: torch.Tensor) -> bittensor.QuantizedWeight:
        """The weight as it is handed to BitTensor, with `changes` of its tensors."""
        tensors = {name: each.tensor for name, each in self.placed.items()} | changes
        return bittensor.QuantizedWeight(
            **tensors, shape=(len(tensors["words"]), self.k), group_size=self.group_size, bits=self.bits
        )


@dataclass(frozen=True)
class LinearCase:
    """`bittensor.linear` of x ``[*leading, k]`` and a weight ``[n, k]``.

    Attributes:
        x_dtype: of x, and so of the result.
        bias: ``[n]`` of `bias_dtype`.
        epilogue: None, "relu", "gelu" or "silu".
        special: a value that is written to `x` in the middle row, somewhere.
    """

    weight: WeightCase
    leading: tuple[int, ...] = (1,)
    mode: Mode = "int8"
    x: FloatFill = _X
    x_dtype: FloatDtype = "float32"
    bias: FloatFill | None = None
    bias_dtype: FloatDtype = "float32"
    epilogue: str | None = None
    special: Special | None = None
    x_layout: str = "contiguous"
    bias_layout: str = "contiguous"

    @property
    def bits(self) -> int:
        return self.weight.bits

    @cached_property
    def inputs(self) -> dict[str, Placed]:
        """X and bias."""
        rows, k = prod(self.leading), self.weight.k
        x = self.x.floats((rows, k), self.x_dtype)
        if self.special is not None and rows:
            row, column = rows // 2, np.random.default_rng(self.x.seed).integers(k)
            x[row, column] = np.float32(self.special)
        inputs = {"x": place_floats(x.reshape(*self.leading, k), self.x_dtype, self.x_layout)}
        if self.bias is not None:
            bias = self.bias.floats((self.weight.n,), self.bias_dtype)
            inputs["bias"] = place_floats(bias, self.bias_dtype, self.bias_layout)
        return inputs

    @cached_property
    def expected(self) -> Floats | oracle_linear.Interval:
        """The oracle's result for the rows of x, ``[M, n]``: values, or what section 5 allows."""
        inputs = self.inputs
        x = inputs["x"].values.reshape(-1, self.weight.k)
        bias = inputs["bias"].values if self.bias is not None else None
        compute = oracle_linear.linear_int8 if self.mode == "int8" else oracle_linear.linear_float
        return compute(x, self.weight.weight, bias, self.epilogue, self.x_dtype)

    def call(self, **changes: Any) -> torch.Tensor:
        """The public function on the current backend, with `changes` of its arguments."""
        inputs = {name: each.tensor for name, each in self.inputs.items()}
        return bittensor.linear(
            **{"weight": self.weight.quantized(), **inputs, **changes},
            activation_mode=self.mode,
            epilogue=self.epilogue,
        )

    def run(self, target: str) -> None:
        """Compute on `target`, compare with the oracle, and see that the inputs are as they were."""
        text = snippet(self, target)
        result = call_on(target, self, text)
        self.check(result, text)
        check_unmodified(self.inputs | self.weight.placed, text)

    def check(self, result: torch.Tensor, text: str) -> None:
        """Compare a result with the oracle's."""
        expected, shape = self.expected, (*self.leading, self.weight.n)
        tensors = [each.tensor for each in (self.inputs | self.weight.placed).values()]
        what = f"linear, mode {self.mode}"
        dtype = TORCH_DTYPES[self.x_dtype]
        if isinstance(expected, oracle_linear.Interval):
            check_within(result, expected, shape, dtype, what=what, snippet=text, inputs=tensors)
        else:
            check_floats(result, expected, shape, dtype, what=what, snippet=text, inputs=tensors)


@dataclass(frozen=True)
class BoundedLinearCase(LinearCase):
    """A linear with int8 activations on a backend of bounded numerics: within the bound of section 4."""

    @cached_property
    def expected(self) -> oracle_linear.Interval:
        """What section 4 allows for the rows of x, ``[M, n]``."""
        x = self.inputs["x"].values.reshape(-1, self.weight.k)
        bias = self.inputs["bias"].values if self.bias is not None else None
        return oracle_linear.linear_int8_bound(x, self.weight.weight, bias, self.epilogue, self.x_dtype)


def held_to(capabilities: Capabilities, case: LinearCase) -> LinearCase:
    """The case as what `capabilities` promise is to be compared: bit for bit, or within a bound."""
    if case.mode == "float" or capabilities.numerics == "exact":
        return case
    return BoundedLinearCase(**{each.name: getattr(case, each.name) for each in fields(case)})
