"""Cases of section 6 of docs/numerics.md: the gradient of a linear with respect to its input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch

from bittensor import current_backend

from . import oracle_linear
from .cases import Snippet, call_on, check_unmodified
from .compare import check_within
from .fills import Fill
from .float_fills import FloatFill
from .layouts import Placed
from .linear_cases import TORCH_DTYPES, LinearCase, Special, WeightCase, place_floats
from .oracle_linear import FloatDtype, Interval

__all__ = ["Fill", "FloatFill", "GradientCase", "WeightCase"]

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

    def tensors(self) -> dict[str, torch.Tensor]:
        """The gradient of the result."""
        return {"dy": self.placed.tensor}

    def call(self, dy: torch.Tensor | None = None) -> torch.Tensor:
        """The operation of the current backend, with another dy if one is given."""
        backend = current_backend()
        return backend.linear_input_grad(
            self.placed.tensor if dy is None else dy, backend.prepare(self.weight.quantized())
        )

    def run(self, target: str, before: str = "") -> None:
        """Compute on `target`, compare with the oracle, and see that dy is as it was."""
        text = Snippet(self, target, before)
        self.check(call_on(target, self, text), text)
        check_unmodified({"dy": self.placed}, text)

    def check(self, result: torch.Tensor, text: object) -> None:
        """Compare a result with what section 6 allows."""
        check_within(
            result,
            self.expected,
            (*self.leading, self.weight.k),
            TORCH_DTYPES[self.dtype],
            what="linear_input_grad",
            snippet=text,
            inputs=[self.placed.tensor],
        )


def allowed_gradients(
    case: LinearCase, y: oracle_linear.Floats, dy: oracle_linear.Floats, exact: bool
) -> tuple[Interval, Interval]:
    """What section 6 allows for the gradients of x and of the bias, of a linear with the result y ``[M, N]``."""
    dv, moved = dy.astype(np.float64), np.zeros(dy.shape)
    if case.epilogue == "relu":
        dv = dv * (y > 0)
    elif case.epilogue is not None:
        x, weight, bias = case.rows()
        if exact and case.mode == "int8":
            v = oracle_linear.linear_int8(x, weight, bias, None, "float32").astype(np.float64)
            off = np.zeros_like(v)
        else:
            compute = oracle_linear.linear_int8_bound if case.mode == "int8" else oracle_linear.linear_float
            interval = compute(x, weight, bias, None, "float32")
            v, off = interval.center, interval.reach
        slope, error = oracle_linear.derivative(v, off, case.epilogue)
        moved = np.abs(dv) * (error + 2.0**-24 * np.abs(slope))
        dv = dv * slope
    dx = oracle_linear.gradient_of_input(dv, moved, case.weight.weight, case.x_dtype)
    return dx, oracle_linear.gradient_of_bias(dv, moved)
