"""Cases of section 6 of docs/numerics.md: the gradient of a linear with respect to its input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch

from bittensor import get_backend, use_backend

from . import oracle_linear
from .cases import check_unmodified
from .compare import check_within, fail
from .float_fills import FloatFill
from .layouts import Placed
from .linear_cases import TORCH_DTYPES, Special, WeightCase, place_floats
from .oracle_linear import FloatDtype

_DY = FloatFill(seed=5)


@dataclass(frozen=True)
class GradientCase:
    """`linear_input_grad` of dy ``[*leading, n]`` and a weight ``[n, k]``; `special` is written to its middle row."""

    weight: WeightCase
    leading: tuple[int, ...] = (1,)
    dy: FloatFill = _DY
    dtype: FloatDtype = "float32"
    special: Special | None = None
    layout: str = "contiguous"

    @cached_property
    def placed(self) -> Placed:
        """The gradient of the result, in memory."""
        rows, n = prod(self.leading), self.weight.n
        dy = self.dy.floats((rows, n), self.dtype)
        if self.special is not None and rows:
            dy[rows // 2, np.random.default_rng(self.dy.seed).integers(n)] = np.float32(self.special)
        return place_floats(dy.reshape(*self.leading, n), self.dtype, self.layout)

    @cached_property
    def expected(self) -> oracle_linear.Interval:
        """What section 6 allows for the rows of dy, ``[M, k]``."""
        dy = self.placed.values.reshape(-1, self.weight.n)
        return oracle_linear.linear_input_grad(dy, self.weight.weight, self.dtype)

    def text(self, target: str) -> str:
        """Lines that show the call again."""
        return (
            f"from bittensor_conformance.gradient_cases import *\ncase = {self!r}\n"
            f"case.run({target!r})  # from {__name__}, and {WeightCase.__module__}"
        )

    def call(self, target: str, dy: torch.Tensor | None = None) -> torch.Tensor:
        """The operation of the backend."""
        backend = get_backend(target)
        given = self.placed.tensor if dy is None else dy
        try:
            with use_backend(target):  # which the backend may use in turn, to unpack the weight
                return backend.linear_input_grad(given, backend.prepare(self.weight.quantized()))
        except Exception as error:
            fail(f"expected a result, got {type(error).__name__}: {error}", self.text(target))

    def run(self, target: str) -> None:
        """Compute on `target`, compare with the oracle, and see that dy is as it was."""
        text = self.text(target)
        result = self.call(target)
        shape = (*self.leading, self.weight.k)
        inputs = [self.placed.tensor]
        check_within(
            result,
            self.expected,
            shape,
            TORCH_DTYPES[self.dtype],
            what="linear_input_grad",
            snippet=text,
            inputs=inputs,
        )
        check_unmodified({"dy": self.placed}, text)
