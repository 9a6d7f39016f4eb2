"""The two ways in which a `bittensor.QuantizedWeight` holds its data: canonical tensors, or a backend's layout."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .backend import Backend
from .prepared_weight import PreparedWeight, WeightForm


@dataclass(frozen=True)
class CanonicalTensors:
    """The tensors of a weight as users see and save them."""

    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    offsets: torch.Tensor | None = None

    def named(self) -> dict[str, torch.Tensor]:
        """The tensors that there are, by name."""
        names = ("words", "scales", "zeros", "offsets")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors that there are."""
        return tuple(self.named().values())

    def convert(self, function: Callable[[torch.Tensor], torch.Tensor]) -> CanonicalTensors:
        """The same with `function` applied to each tensor."""
        return CanonicalTensors(**{name: function(tensor) for name, tensor in self.named().items()})

    def dequantize(self, form: WeightForm, codes: torch.Tensor) -> torch.Tensor:
        """The values of uint8 codes ``[N, K]``: float32 of the same shape."""
        values = codes.to(torch.float32)
        columns, size = form.shape[1], form.group_size
        whole = columns - columns % size
        groups = whole // size
        self._dequantize_groups(form.bits, values[:, :whole].view(-1, groups, size), slice(0, groups))
        if whole < columns:
            self._dequantize_groups(form.bits, values[:, None, whole:], slice(groups, None))
        return values

    def _dequantize_groups(self, bits: int, values: torch.Tensor, groups: slice) -> None:
        """Turn codes ``[N, groups, columns]`` into values in place."""
        if self.zeros is not None:
            values -= self.zeros[:, groups, None]
        elif self.offsets is None:
            values -= 1 << (bits - 1)
        values *= self.scales[:, groups, None].to(torch.float32)
        if self.offsets is not None:
            values += self.offsets[:, groups, None].to(torch.float32)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class HeldByBackend:
    """A weight in the layout of a backend, and that backend, which alone can restore it."""

    weight: PreparedWeight
    backend: Backend

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors in memory."""
        return self.weight.tensors

    def convert(self, function: Callable[[torch.Tensor], torch.Tensor]) -> HeldByBackend:
        """The same with `function` applied to each tensor."""
        tensors = tuple(function(tensor) for tensor in self.weight.tensors)
        return HeldByBackend(replace(self.weight, tensors=tensors), self.backend)


class Restored:
    """Canonical tensors that were restored from a backend's layout, known for as long as somebody else keeps them.

    Two modules that share a weight put the same tensors into a state_dict, and torch.save writes them once.
    """

    def __init__(self, source: HeldByBackend, canonical: CanonicalTensors) -> None:
        self._source = weakref.ref(source)
        self._tensors = {name: weakref.ref(tensor) for name, tensor in canonical.named().items()}

    def of(self, source: HeldByBackend) -> CanonicalTensors | None:
        """The tensors, if they are those of `source` and all of them still exist."""
        tensors = {name: reference() for name, reference in self._tensors.items()}
        if self._source() is not source or None in tensors.values():
            return None
        return CanonicalTensors(**tensors)  # type: ignore[arg-type]
