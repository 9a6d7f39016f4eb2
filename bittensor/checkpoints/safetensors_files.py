"""The container of safetensors: one file, or several with an index."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..extras import extra
from .checkpoint import is_shape_of_tensor
from .json_files import read_json, take

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a safetensors file, as its header describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class SafetensorsFiles:
    """The tensors of one or more safetensors files, read one at a time.

    Args:
        path: a file, or a directory with ``model.safetensors`` or with shards and their index.

    Attributes:
        tensors: by name, in the order of the files.

    Raises:
        CheckpointError: no such file, a header that cannot be true, an index that does not fit its files.
        ModuleNotFoundError: the package safetensors is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: dict[Path, Any] = {}
        index = path / INDEX_NAME
        if path.is_dir() and index.is_file() and not (path / WEIGHTS_NAME).is_file():
            self.tensors = self._indexed(index)
        else:
            self.tensors = self._describe(path / WEIGHTS_NAME if path.is_dir() else path)

    def read(self, name: str) -> torch.Tensor:
        """The values of a tensor, in memory of its own."""
        file, dtype = self.tensors[name].file, self.tensors[name].dtype
        if _bits(file, name, dtype) % 8:
            raise CheckpointError(file, f"dtype {dtype} is not supported: expected values of whole bytes", name)
        with _errors_of(file, name):
            tensor = self._opened[file].get_tensor(name)
        assert isinstance(tensor, torch.Tensor)
        return tensor

    def _indexed(self, index: Path) -> dict[str, FileTensor]:
        placed = take(index, read_json(index), "weight_map", dict)
        files: dict[str, dict[str, FileTensor]] = {}
        for name, file in placed.items():
            if not isinstance(file, str) or not _is_file_name(file):
                raise CheckpointError(index, f"expected the name of a file beside the index, got {file!r}", name)
            if file not in files:
                files[file] = self._describe(self.path / file)
            if name not in files[file]:
                raise CheckpointError(self.path / file, f"missing, though {INDEX_NAME} places it here", name)
        found: dict[str, FileTensor] = {}
        for tensors in files.values():
            if again := sorted(found.keys() & tensors.keys()):
                raise CheckpointError(tensors[again[0]].file, f"also in {found[again[0]].file.name}", again[0])
            found |= tensors
        return found

    def _describe(self, file: Path) -> dict[str, FileTensor]:
        tensors = {}
        with _errors_of(file):
            opened = self._opened[file] = _open(file)
            for name in opened.offset_keys():
                view = opened.get_slice(name)
                shape, dtype = tuple(view.get_shape()), view.get_dtype()
                if not is_shape_of_tensor(shape):
                    raise CheckpointError(file, f"no tensor can have the shape {list(shape)}", name)
                nbytes = math.prod(shape) * _bits(file, name, dtype) // 8
                tensors[name] = FileTensor(file, dtype, shape, nbytes)
        return tensors


def _is_file_name(text: str) -> bool:
    r"""Whether it can be that of a file in a directory.

    >>> [_is_file_name(text) for text in ("a.safetensors", "", "..", "../a", "\ud800")]
    [True, False, False, False, False]
    """
    try:
        return text not in ("", "..") and Path(text).name == text and bool(os.fsencode(text))
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        return False


def _open(file: Path) -> Any:
    from safetensors import safe_open

    # "pread" copies what is read. A map would end the process if the file were truncated while it is in use.
    return safe_open(file, framework="pt", backend="pread")


def _bits(file: Path, name: str, dtype: str) -> int:
    if dtype == "BOOL":
        return 8
    digits = "".join(character for character in dtype.partition("_")[0] if character.isdigit())
    if not digits:
        raise CheckpointError(file, f"dtype {dtype} is not known", name)
    return int(digits)


@contextmanager
def _errors_of(file: Path, tensor: str | None = None) -> Iterator[None]:
    """Errors of the package safetensors as `CheckpointError`."""
    with extra("models", "reading safetensors", ("safetensors",)):
        from safetensors import SafetensorError
    try:
        yield
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise CheckpointError(file, reason, tensor) from None
    except SafetensorError as error:
        raise CheckpointError(file, f"not a valid safetensors file: {error}", tensor) from None
