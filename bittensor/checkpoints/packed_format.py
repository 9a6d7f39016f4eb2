"""How a quantized weight is spread over several tensors of a safetensors checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping

import torch

from .checkpoint import Stored

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the tensors of a weight, by the last part of their names."""

ReadPart = Callable[[str], torch.Tensor]
"""Reads a tensor of a weight by the last part of its name."""


class PackedFormat(ABC):
    """A format in which the weight of layer ``L`` is tensors ``L.PART``.

    Attributes:
        name: as in `Checkpoint.format`.
        marker: the part that every packed weight has.
        parts: all parts that a weight may have. Other tensors ``L.*``, a bias for example, are read as they are.
    """

    name: str
    marker: str
    parts: tuple[str, ...]

    @abstractmethod
    def describe(self, weight: str, shapes: Shapes, read: ReadPart) -> tuple[str, tuple[int, int]]:
        """Type, as in `TensorEntry`, and shape ``(N, K)`` of the weight of this name, from shapes and small parts.

        Raises:
            KeyError: a part that is missing.
            TypeError, ValueError: a part of the wrong rank or with wrong content.
        """

    def missing(self, weights: Collection[str]) -> str | None:
        """A weight that the configuration has but the file, whose packed weights these are, has not; or None."""
        return None

    @abstractmethod
    def decode(self, tensors: Mapping[str, torch.Tensor]) -> Stored:
        """The weight of these parts.

        Raises:
            KeyError: a part that is missing.
            TypeError, ValueError: a part of the wrong dtype or shape, or with wrong content.
        """


def matrix_shape(shapes: Shapes, name: str) -> tuple[int, int]:
    """Shape of a part that must be a matrix without an empty dimension."""
    shape = shapes[name]
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name}: expected two dimensions of at least 1, got {list(shape)}")
    return shape[0], shape[1]


def type_name(bits: int, group_size: int, zero: str) -> str:
    """Type of a packed weight, as in `TensorEntry`.

    >>> type_name(4, 128, "symmetric")
    'int4 group 128 symmetric'
    """
    return f"int{bits} group {group_size} {zero}"
