"""Decisions from bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Choices:
    """Reads decisions from bytes, from their beginning on; a decision for which no bytes are left is the first one.

    >>> choices = Choices(bytes([7, 1]))
    >>> choices.below(5), choices.one_of("ab"), choices.one_of("ab")
    (2, 'b', 'a')
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        """The next bytes, with zeros for those that are missing."""
        taken = self._data[self._position : self._position + count]
        self._position += count
        return taken.ljust(count, b"\0")

    def rest(self) -> bytes:
        """All bytes that are left."""
        taken = self._data[self._position :]
        self._position = len(self._data)
        return taken

    def below(self, count: int) -> int:
        """A number from 0 to `count` - 1, at most 255."""
        return self.take(1)[0] % count

    def one_of(self, options: Sequence[T]) -> T:
        """One of at most 256 options."""
        return options[self.below(len(options))]

    def integer(self) -> int:
        """Any signed number of 64 bits."""
        return int.from_bytes(self.take(8), "little", signed=True)

    def generator(self) -> np.random.Generator:
        """A generator of bulk data, seeded by a byte."""
        return np.random.default_rng(self.take(1)[0])
