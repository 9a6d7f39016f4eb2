"""Cases of section 3 to 5 of docs/numerics.md: a group-quantized weight, and a linear with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any, Literal, get_args

import numpy as np
import torch

import bittensor
from bittensor.prepared_weight import CANONICAL_LAYOUT

from . import oracle, oracle_linear
from .cases import Snippet, call_on, check_unmodified, poisoned
from .compare import check_equal, check_floats, check_within, fail
from .fills import Fill
from .float_fills import FloatFill
from .layouts import Placed, place
from .oracle_linear import FloatDtype, Floats, ZeroKind

__all__ = ["Fill", "FloatFill", "LinearCase", "WeightCase"]

Mode = Literal["int8", "float"]
Special = Literal["nan", "-nan", "inf", "-inf"]
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
        """The tensors of the weight by name; equal cases share them."""
        return _placed(self) if self._spells_floats else _shared_placed(self)

    @cached_property
    def weight(self) -> oracle_linear.Weight:
        """The oracle's view of it: what lies in memory."""
        return _weight(self) if self._spells_floats else _shared_weight(self)

    @property
    def _spells_floats(self) -> bool:
        """Whether equality says too little: 0.0 == -0.0."""
        return self.scales.values is not None or self.offsets.values is not None

    def quantized(self, **changes: torch.Tensor) -> bittensor.QuantizedWeight:
        """The weight as it is handed to BitTensor, with `changes` of its tensors."""
        tensors = {name: each.tensor for name, each in self.placed.items()} | changes
        return bittensor.QuantizedWeight(
            **tensors, shape=(len(tensors["words"]), self.k), group_size=self.group_size, bits=self.bits
        )

    def call(self) -> bittensor.QuantizedWeight:
        """The weight, prepared and restored by the current backend."""
        backend = bittensor.current_backend()
        return backend.restore(backend.prepare(self.quantized()))

    def run(self, target: str, before: str = "") -> None:
        """Prepare and restore on `target`: the same weight, to the bit, and no byte of what was given has changed."""
        text = Snippet(self, target, before)
        try:
            with bittensor.use_backend(target) as backend:
                restored = self.call()
        except Exception as error:
            fail(f"expected a weight, got {type(error).__name__}: {error}", text)
        check_unmodified(self.placed, text)
        form = (restored.shape, restored.bits, restored.group_size, restored.zero)
        expected = ((self.n, self.k), self.bits, self.group_size or self.k, self.zero)
        if form != expected:
            fail(f"restore: expected {expected}, got {form}", text)
        # Unused bits come back as 0, or, where the layout is the canonical one, as they were given.
        words, given = restored.words.numpy(), self.placed["words"].values
        as_given = backend.capabilities.layout == CANONICAL_LAYOUT and np.array_equal(words, given)
        packed = given if as_given else oracle.pack(self.weight.codes, self.bits)
        check_equal(words, packed, what="restored words", snippet=text)
        if self.zero == "integer":
            assert restored.zeros is not None
            check_equal(restored.zeros.numpy(), self.placed["zeros"].values, what="restored zeros", snippet=text)
        for name in ("scales", "offsets"):
            if name in self.placed:
                values, dtype = self.placed[name].values, TORCH_DTYPES[self.scale_dtype]
                tensor = getattr(restored, name).contiguous()
                check_floats(tensor, values, values.shape, dtype, what=f"restored {name}", snippet=text)


def _placed(case: WeightCase) -> dict[str, Placed]:
    grouped, dtype, layout = (case.n, case.groups), case.scale_dtype, case.layout
    words = oracle.pack(case.codes.codes((case.n, case.k), case.bits), case.bits)
    placed = {"words": place(poisoned(words, case.k, case.bits, case.poison), layout)}
    placed["scales"] = place_floats(case.scales.floats(grouped, dtype), dtype, layout)
    if case.zero == "integer":
        placed["zeros"] = place(case.zeros.codes(grouped, case.bits), layout)
    if case.zero == "float":
        placed["offsets"] = place_floats(case.offsets.floats(grouped, dtype), dtype, layout)
    return placed


def _weight(case: WeightCase) -> oracle_linear.Weight:
    values = {name: each.values for name, each in case.placed.items()}
    codes, size = oracle.unpack(values["words"], case.k, case.bits), case.group_size or case.k
    return oracle_linear.Weight(codes, values["scales"], values.get("zeros"), values.get("offsets"), case.bits, size)


# A sweep takes one weight with many rows, dtypes and modes.
_shared_placed, _shared_weight = lru_cache(maxsize=32)(_placed), lru_cache(maxsize=32)(_weight)


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
        """What exact numerics owe for the rows of x, ``[M, n]``: values, or in the mode "float" an interval."""
        if self.mode == "float":
            return self.allowed
        return oracle_linear.linear_int8(*self.rows(), self.epilogue, self.x_dtype)

    @cached_property
    def allowed(self) -> oracle_linear.Interval:
        """What bounded numerics allow for the rows of x, ``[M, n]``."""
        compute = oracle_linear.linear_int8_bound if self.mode == "int8" else oracle_linear.linear_float
        return compute(*self.rows(), self.epilogue, self.x_dtype)

    def rows(self) -> tuple[Floats, oracle_linear.Weight, Floats | None]:
        """The oracle's view of x, weight and bias."""
        x = self.inputs["x"].values.reshape(-1, self.weight.k)
        return x, self.weight.weight, self.inputs["bias"].values if self.bias is not None else None

    def tensors(self) -> dict[str, Any]:
        """The tensors among the arguments, and the weight."""
        return {"weight": self.weight.quantized(), **{name: each.tensor for name, each in self.inputs.items()}}

    def call(self, **changes: Any) -> torch.Tensor:
        """The public function on the current backend, with `changes` of its arguments."""
        return bittensor.linear(**{**self.tensors(), **changes}, activation_mode=self.mode, epilogue=self.epilogue)

    def run(self, target: str, before: str = "") -> None:
        """Compute on `target`, compare with the oracle, and see that the inputs are as they were."""
        text = Snippet(self, target, before)
        result = call_on(target, self, text)
        self.check(result, text, exact=is_exact(target))
        check_unmodified(self.inputs | self.weight.placed, text)

    def check(self, result: torch.Tensor, text: object, *, exact: bool) -> None:
        """Compare a result with what exact or bounded numerics owe."""
        expected, shape = self.expected if exact else self.allowed, (*self.leading, self.weight.n)
        tensors = [each.tensor for each in (self.inputs | self.weight.placed).values()]
        what = f"linear, mode {self.mode}"
        dtype = TORCH_DTYPES[self.x_dtype]
        if isinstance(expected, oracle_linear.Interval):
            check_within(result, expected, shape, dtype, what=what, snippet=text, inputs=tensors)
        else:
            check_floats(result, expected, shape, dtype, what=what, snippet=text, inputs=tensors)


def is_exact(target: str) -> bool:
    """Whether a target declares exact numerics."""
    return bittensor.get_backend(target).capabilities.numerics == "exact"
