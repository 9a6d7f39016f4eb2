"""What is compiled once for a weight, kept for as long as the weight's tensors live."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import RLock
from typing import Generic, TypeVar

import torch
from torch.utils.weak import WeakIdKeyDictionary

from bittensor import PreparedWeight

T = TypeVar("T")


class Compiled(Generic[T]):
    """Results of `compile_weight` by the weight they were made of, and by a further key."""

    def __init__(self, compile_weight: Callable[..., T]) -> None:
        self._compile = compile_weight
        self._kept = WeakIdKeyDictionary()
        self._lock = RLock()

    def get(self, weight: PreparedWeight, *key: Hashable) -> T:
        """The result for this weight and key, compiled at the first call."""
        words, *others = weight.tensors
        with self._lock:
            entries: list[tuple[tuple[torch.Tensor, ...], object, T]] = self._kept.setdefault(words, [])  # type: ignore[no-untyped-call]
            for tensors, kept_key, result in entries:
                same = all(one is other for one, other in zip(tensors, others, strict=True))
                if same and kept_key == (weight.form, key):
                    return result
            result = self._compile(weight, *key)
            entries.append((tuple(others), (weight.form, key), result))
            return result
