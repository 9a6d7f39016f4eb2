"""Cases of section 9 of docs/numerics.md: rows of a group-quantized weight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from bittensor import get_backend

from . import oracle_linear
from .cases import check_unmodified
from .compare import check_floats, fail
from .fills import Fill
from .float_fills import FloatFill
from .layouts import Placed, place
from .linear_cases import TORCH_DTYPES, WeightCase
from .oracle_linear import FloatDtype, Floats

__all__ = ["EmbeddingCase", "Fill", "FloatFill", "WeightCase"]


@dataclass(frozen=True)
class EmbeddingCase:
    """`embedding` of indices of shape `leading` and a weight, to `dtype`.

    Attributes:
        seed: of the indices, which have the first and the last row among them where there is room.
        narrow: the indices are int32.
    """

    weight: WeightCase
    leading: tuple[int, ...] = (5,)
    dtype: FloatDtype = "float32"
    seed: int = 0
    narrow: bool = False
    layout: str = "contiguous"

    @cached_property
    def placed(self) -> Placed:
        """The indices, in memory."""
        indices = np.asarray(np.random.default_rng(self.seed).integers(self.weight.n, size=self.leading))
        flat = indices.reshape(-1)
        flat[:2] = (self.weight.n - 1, 0)[: flat.size]
        return place(indices.astype(np.int32 if self.narrow else np.int64), self.layout)

    @cached_property
    def expected(self) -> Floats:
        """The rows, one below the other."""
        rows: Floats = oracle_linear.dequantize(self.weight.weight, self.dtype)[self.placed.values.reshape(-1)]
        return rows

    def text(self, target: str) -> str:
        """Lines that show the call again."""
        return (
            f"from bittensor_conformance.embedding_cases import *\ncase = {self!r}\n"
            f"case.run({target!r})  # from {__name__}, and {WeightCase.__module__}"
        )

    def call(self, target: str, indices: torch.Tensor | None = None) -> torch.Tensor:
        """The operation of the backend."""
        backend = get_backend(target)
        given = self.placed.tensor if indices is None else indices
        try:
            return backend.embedding(given, backend.prepare(self.weight.quantized()), TORCH_DTYPES[self.dtype])
        except Exception as error:
            fail(f"expected a result, got {type(error).__name__}: {error}", self.text(target))

    def run(self, target: str) -> None:
        """Compute on `target`, compare with the oracle, and see that the indices are as they were."""
        text, shape = self.text(target), (*self.leading, self.weight.k)
        result, dtype = self.call(target), TORCH_DTYPES[self.dtype]
        inputs = [self.placed.tensor]
        check_floats(result, self.expected, shape, dtype, what="embedding", snippet=text, inputs=inputs)
        check_unmodified({"indices": self.placed}, text)
