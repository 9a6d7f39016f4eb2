"""Writing of checkpoints: our own format, and compressed-tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..extras import extra
from ..quantized_weight import QuantizedWeight
from . import compressed_tensors, native
from .checkpoint import Stored
from .new_directory import new_directory
from .opening import CONFIG_NAME, QUANTIZATION_KEY
from .reordered_weight import ReorderedWeight
from .safetensors_files import WEIGHTS_NAME

_SUFFIX = ".weight"
_DTYPES = (
    *(torch.bool, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
)
"""Those that safetensors holds and reads."""


def save_checkpoint(
    path: str | Path,
    tensors: Mapping[str, Stored],
    config: Mapping[str, Any] | None = None,
    *,
    files: Mapping[str, Path] | None = None,
) -> None:
    """Write a checkpoint in our own format: a directory with ``model.safetensors`` and ``config.json``.

    A layer's packed weight ``L.weight`` is stored as the state_dict of `bittensor.nn.QuantizedLinear` holds it, so
    that ``load_state_dict`` takes it; see docs/checkpoints.md. The directory appears when all is written, or not at
    all.

    Args:
        path: a directory that does not exist yet, or is empty.
        tensors: by name; the names of packed weights end with ``.weight``.
        config: what ``config.json`` holds beside the quantization: that of the model.
        files: copied into the directory, by their paths there: the tokenizer for example.

    Raises:
        CheckpointError: `path` exists and is not an empty directory, or cannot be written.
        ValueError: a name that does not fit; a tensor without values (on the device meta), a sparse one, or one of a
            dtype that safetensors does not hold; a `config` that JSON does not hold. Nothing is written then.
        ModuleNotFoundError: the package safetensors is not installed.
    """
    forms: dict[str, Any] = {}
    flat: dict[str, torch.Tensor] = {}
    for name, stored in tensors.items():
        if isinstance(stored, torch.Tensor):
            _put(flat, name, stored)
            continue
        weight = stored.weight if isinstance(stored, ReorderedWeight) else stored
        forms[name] = native.form_config(weight.form)
        for part, tensor in native.encode(stored).items():
            _put(flat, f"{_layer(name)}.{part}", tensor)
    _save(Path(path), flat, config, native.config(forms) if forms else None, files)


def save_compressed_tensors(
    path: str | Path,
    tensors: Mapping[str, Stored],
    config: Mapping[str, Any] | None = None,
    *,
    files: Mapping[str, Path] | None = None,
) -> None:
    """Write a checkpoint in the format "pack-quantized" of compressed-tensors; arguments as `save_checkpoint`.

    Raises:
        ValueError: a weight that the format does not hold: with float offsets, a shorter last group, or ordered
            columns; or as `save_checkpoint`.
        CheckpointError, ModuleNotFoundError: as `save_checkpoint`.

    >>> import tempfile, bittensor
    >>> from bittensor.checkpoints import open_checkpoint
    >>> weight = bittensor.quantize(torch.eye(32), group_size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_compressed_tensors(Path(folder, "model"), {"layer.weight": weight, "layer.bias": torch.zeros(32)})
    ...     checkpoint = open_checkpoint(Path(folder, "model"))
    ...     checkpoint.format, checkpoint.read("layer.weight").equal(weight)
    ('compressed-tensors', True)
    """
    flat: dict[str, torch.Tensor] = {}
    schemes: dict[str, list[str]] = {}
    ignored = []
    for name, stored in tensors.items():
        if isinstance(stored, torch.Tensor):
            _put(flat, name, stored)
            if name.endswith(_SUFFIX) and stored.dim() == 2:
                ignored.append(name.removesuffix(_SUFFIX))
            continue
        if not isinstance(stored, QuantizedWeight):
            raise ValueError(f"{name}: compressed-tensors no longer holds weights with ordered columns (act-order)")
        try:
            parts = compressed_tensors.encode(stored)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        for part, tensor in parts.items():
            _put(flat, f"{_layer(name)}.{part}", tensor)
        schemes.setdefault(json.dumps(compressed_tensors.scheme_config(stored)), []).append(_layer(name))
    quantization = compressed_tensors.config(schemes, ignored) if schemes else None
    _save(Path(path), flat, config, quantization, files)


def _save(
    path: Path,
    tensors: dict[str, torch.Tensor],
    config: Mapping[str, Any] | None,
    quantization: Mapping[str, Any] | None,
    files: Mapping[str, Path] | None,
) -> None:
    with extra("models", "writing safetensors", ("safetensors",)):
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    content = {key: value for key, value in (config or {}).items() if key != QUANTIZATION_KEY}
    if quantization is not None:
        content[QUANTIZATION_KEY] = quantization
    try:
        text = json.dumps(content, indent=2) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"config: expected what JSON can hold: {error}") from None
    with new_directory(path) as folder:
        for name, file in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
        (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
        try:
            save_file(_in_memory_of_its_own(tensors), folder / WEIGHTS_NAME, metadata={"format": "pt"})
        except SafetensorError as error:
            raise CheckpointError(path, f"cannot be written: {error}") from None
        shutil.copymode(folder / CONFIG_NAME, folder / WEIGHTS_NAME)  # safetensors does not mind the umask


def _layer(name: str) -> str:
    if not name.endswith(_SUFFIX):
        raise ValueError(f"expected the name of a packed weight to end with {_SUFFIX!r}, got {name!r}")
    return name.removesuffix(_SUFFIX)


def _put(tensors: dict[str, torch.Tensor], name: str, tensor: torch.Tensor) -> None:
    if name in tensors:
        raise ValueError(f"two tensors would be stored as {name!r}")
    if tensor.is_meta:
        raise ValueError(f"{name}: expected a tensor with values, got one on the device meta; load the model first")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, got {tensor.layout}; convert it with to_dense()")
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name}: expected a dtype that safetensors holds, got {tensor.dtype}; convert it with to()")
    tensors[name] = tensor.detach().resolve_conj().resolve_neg().contiguous()


def _in_memory_of_its_own(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of those that share memory with an earlier one, as tied weights do: safetensors refuses them."""
    seen: set[int] = set()
    alone = {}
    for name, tensor in tensors.items():
        start = tensor.untyped_storage().data_ptr()
        alone[name] = tensor.clone() if start in seen else tensor
        seen.add(start)
    return alone
