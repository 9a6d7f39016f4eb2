"""What every checkpoint is to its user: named entries, each read on its own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..progress import with_progress
from ..quantized_weight import QuantizedWeight
from .reordered_weight import ReorderedWeight

Stored = torch.Tensor | QuantizedWeight | ReorderedWeight
"""What an entry is read to."""


def is_shape_of_tensor(shape: Sequence[int]) -> bool:
    """Whether torch can have a tensor of this shape: beside a 0, a file can name any other sizes.

    >>> is_shape_of_tensor((0, 4)), is_shape_of_tensor((0, 2**62, 2))
    (True, False)
    """
    return math.prod(max(1, size) for size in shape) < 2**60  # so that strides in bytes fit 64 bits


@dataclass(frozen=True)
class TensorEntry:
    """What a checkpoint says about a tensor, before its values are read.

    Attributes:
        name: name of the tensor; of a packed weight the name that the float weight had, ``layer.weight``.
        type: how the file stores it: ``F32``, ``Q4_1``, ``int4 group 128 integer``.
        shape: of the values, outermost dimension first: ``(outputs, inputs)`` for a weight.
        nbytes: bytes in the file, with scales and zero points.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def values(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits in the file for a value; 0 if there are no values."""
        return 8 * self.nbytes / self.values if self.values else 0.0


class Checkpoint(ABC):
    """A checkpoint that is open for reading. `bittensor.checkpoints.open_checkpoint` makes one.

    Attributes:
        path: the file or directory that was opened.
        format: "gguf", "safetensors", "bittensor", "gptq", "awq" or "compressed-tensors".
        config: the metadata of a GGUF file, or ``config.json``; empty if there is none.
        entries: by name, in the order of the file.
    """

    path: Path
    format: str
    config: Mapping[str, Any]
    entries: Mapping[str, TensorEntry]

    @abstractmethod
    def read(self, name: str) -> Stored:
        """Read one entry: a tensor, or a `bittensor.QuantizedWeight`; a `ReorderedWeight` if its columns are ordered.

        Raises:
            KeyError: there is no such entry.
            CheckpointError: the file cannot be read, is damaged, or holds the tensor in a form that is not supported.
        """

    def tensors(self, progress: bool = False) -> Iterator[tuple[str, Stored]]:
        """Read every entry, one after the other: ``(name, tensor)``.

        Args:
            progress: show a progress bar on stderr if that is a terminal.
        """
        for name in with_progress(list(self.entries), "reading", wanted=progress):
            yield name, self.read(name)

    def refuse(self, reason: str, tensor: str | None = None) -> CheckpointError:
        """The error for this checkpoint, to raise."""
        return CheckpointError(self.path, reason, tensor)

    def __contains__(self, name: object) -> bool:
        return name in self.entries
