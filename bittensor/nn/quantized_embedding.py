"""An embedding on a group-quantized table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from ..checks import check_int, dtype_name
from ..errors import UnsupportedOperationError
from ..linear_checks import check_table
from ..ops import embedding
from ..quantize_config import QuantizeConfig
from ..quantized_weight import QuantizedWeight
from ..registry import current_backend
from ..weight_checks import check_scale_dtype
from .weight_module import WeightModule


class QuantizedEmbedding(WeightModule):
    """``torch.nn.Embedding`` on a group-quantized table: `bittensor.embedding` as a module.

    The table is held, saved and shared as `bittensor.nn.WeightModule` says. A `bittensor.nn.QuantizedLinear` of the
    same weight is the head that is tied to it: both read one copy. The table is constant and gets no gradient.

    Args:
        weight: ``[num_embeddings, embedding_dim]``.
        padding_idx: kept as ``torch.nn.Embedding`` keeps it. There it is the row without a gradient, which no row has
            here: it changes nothing.
        dtype: of the results: float32, float16 or bfloat16. ``.to(dtype)`` changes it, to any other too, with which a
            call fails.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: `padding_idx` is no row.

    >>> import torch, bittensor
    >>> layer = bittensor.nn.QuantizedEmbedding.from_embedding(torch.nn.Embedding(100, 64), bits=4, group_size=32)
    >>> layer
    QuantizedEmbedding(100, 64, bits=4, group_size=32, zero='symmetric', scales=float32, dtype=float32)
    >>> layer(torch.tensor([[3, 14], [15, 92]])).shape
    torch.Size([2, 2, 64])
    >>> head = bittensor.nn.QuantizedLinear(layer.weight)  # tied: no second copy
    """

    def __init__(
        self, weight: QuantizedWeight, padding_idx: int | None = None, *, dtype: torch.dtype = torch.float32
    ) -> None:
        if not isinstance(weight, QuantizedWeight):
            raise TypeError(f"weight: expected a QuantizedWeight, got {type(weight).__name__}")
        super().__init__(weight)
        check_scale_dtype(dtype, "dtype")
        rows = weight.shape[0]
        if padding_idx is not None and not -rows <= check_int("padding_idx", padding_idx) < rows:
            raise ValueError(f"padding_idx: expected one of the {rows} rows, got {padding_idx}")
        self.padding_idx = padding_idx if padding_idx is None or padding_idx >= 0 else rows + padding_idx
        self.dtype = dtype
        self._prepare()

    def _prepare(self) -> None:
        backend = current_backend()
        with suppress(UnsupportedOperationError, ValueError):  # of another backend's table; the call says so
            check_table(backend, self.weight)
            self.weight.prepared_for(backend)

    @classmethod
    def from_embedding(
        cls, embedding: torch.nn.Embedding, config: QuantizeConfig | None = None, **settings: Any
    ) -> QuantizedEmbedding:
        """Quantize a table as `config` says, or a `bittensor.QuantizeConfig` of the `settings`; the table is kept.

        Raises:
            TypeError, ValueError: as `bittensor.quantize`, or both `config` and `settings` were given, or the table
                has a `max_norm`, which changes it as it is used.
        """
        if config is not None and settings:
            raise TypeError(f"config: expected either a config or its settings, got both: {sorted(settings)}")
        if embedding.max_norm is not None:
            raise ValueError(f"embedding: has max_norm={embedding.max_norm}, which changes the table as it is used")
        config = QuantizeConfig(**settings) if config is None else config
        weight = config.quantize(embedding.weight)
        return cls(weight, embedding.padding_idx, dtype=embedding.weight.dtype).train(embedding.training)

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.weight.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Columns of the table."""
        return self.weight.shape[1]

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Int64 or int32 ``[...]`` to ``[..., embedding_dim]``."""
        return embedding(indices, self.weight, self.dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> QuantizedEmbedding:
        super()._apply(fn, recurse)
        # Of any dtype, as layers have it that were converted before: an error here would leave a model in between.
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device="cpu")).dtype
        return self

    def extra_repr(self) -> str:
        form = self.weight.form
        padding = "" if self.padding_idx is None else f"padding_idx={self.padding_idx}, "
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, {padding}bits={form.bits}, group_size={form.group_size}, "
            f"zero={form.zero!r}, scales={dtype_name(form.scale_dtype)}, dtype={dtype_name(self.dtype)}"
        )
