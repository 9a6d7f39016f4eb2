"""Checkpoints in safetensors: float ones, and those with weights in a `PackedFormat`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .checkpoint import Checkpoint, Stored, TensorEntry
from .packed_format import PackedFormat
from .safetensors_files import SafetensorsFiles


class SafetensorsCheckpoint(Checkpoint):
    """A safetensors file, or a directory with one or with shards.

    Args:
        path: the file or directory.
        files: its tensors.
        config: ``config.json``, or nothing.
        packed: how quantized weights are stored; None if there are none.

    Raises:
        CheckpointError: a weight whose parts do not fit together.
    """

    def __init__(
        self, path: Path, files: SafetensorsFiles, config: Mapping[str, Any], packed: PackedFormat | None = None
    ) -> None:
        self.path, self.config, self.format = path, config, packed.name if packed else "safetensors"
        self._files, self._packed = files, packed
        self._parts = self._find_parts()
        weights = {tensor: weight for weight, parts in self._parts.items() for tensor in parts.values()}
        self.entries: dict[str, TensorEntry] = {}
        for name, tensor in files.tensors.items():
            weight = weights.get(name)
            if weight is None:
                self.entries[name] = TensorEntry(name, tensor.dtype, tensor.shape, tensor.nbytes)
            elif weight not in self.entries:
                self.entries[weight] = self._describe(weight)

        if packed is not None and (absent := packed.missing(self._parts.keys())) is not None:
            raise self.refuse("missing, though config.json describes it", absent)

    def read(self, name: str) -> Stored:
        entry = self.entries[name]
        if name not in self._parts:
            return self._files.read(name)
        assert self._packed is not None  # or there were no parts
        tensors = {part: self._files.read(each) for part, each in self._parts[name].items()}
        try:
            stored = self._packed.decode(tensors)
        except KeyError as error:
            raise self._missing(error, name) from None
        except (TypeError, ValueError) as error:
            raise self.refuse(str(error), name) from None
        if tuple(stored.shape) != entry.shape:
            raise self.refuse(f"expected shape {list(entry.shape)}, got {list(stored.shape)}", name)
        return stored

    def _find_parts(self) -> dict[str, dict[str, str]]:
        """Names of the tensors of each packed weight, by part."""
        found: dict[str, dict[str, str]] = {}
        if self._packed is None:
            return found
        tensors = self._files.tensors
        for name in tensors:
            layer, _, last = name.rpartition(".")
            if last != self._packed.marker:
                continue
            weight = f"{layer}.weight"
            if weight in tensors:
                raise self.refuse(f"stored twice: as it is, and as {last}", weight)
            names = {part: f"{layer}.{part}" for part in self._packed.parts}
            found[weight] = {part: each for part, each in names.items() if each in tensors}
        return found

    def _missing(self, error: KeyError, weight: str) -> CheckpointError:
        return self.refuse(f"{error.args[0]}: missing; the weight has {', '.join(sorted(self._parts[weight]))}", weight)

    def _describe(self, weight: str) -> TensorEntry:
        assert self._packed is not None  # or there were no packed weights
        parts = self._parts[weight]
        tensors = {part: self._files.tensors[name] for part, name in parts.items()}
        shapes = {part: tensor.shape for part, tensor in tensors.items()}

        def read(part: str) -> torch.Tensor:
            return self._files.read(parts[part])

        try:
            type_, shape = self._packed.describe(weight, shapes, read)
        except KeyError as error:
            raise self._missing(error, weight) from None
        except (TypeError, ValueError) as error:
            raise self.refuse(str(error), weight) from None
        return TensorEntry(weight, type_, shape, sum(tensor.nbytes for tensor in tensors.values()))
