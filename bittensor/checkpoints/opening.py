"""Opening of checkpoints, whatever their format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..prepared_weight import GROUP_BITS
from . import compressed_tensors, native
from .awq import BITS as AWQ_BITS
from .awq import AwqFormat
from .checkpoint import Checkpoint
from .compressed_tensors import CompressedTensorsFormat, Scheme
from .gguf import GgufCheckpoint
from .gguf_container import MAGIC
from .gptq import GptqFormat
from .json_files import read_json, take
from .native import NativeFormat
from .packed_format import PackedFormat
from .safetensors import SafetensorsCheckpoint
from .safetensors_files import INDEX_NAME, WEIGHTS_NAME, SafetensorsFiles

CONFIG_NAME = "config.json"
QUANTIZATION_KEY = "quantization_config"
OLDER_CONFIG_NAMES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files of their own for the quantization, as AutoGPTQ and AutoAWQ wrote them, and the method they mean."""

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How they begin: an archive of torch.save, and the versions of the protocol. The size of a safetensors header can be
the same bytes."""

_FORMAT_OF_MARKER = {"words": native.METHOD, "qweight": "gptq or awq", "weight_packed": compressed_tensors.METHOD}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint for reading; nothing but its headers is read yet.

    The format is that of the content: GGUF, or safetensors with the quantization that ``config.json`` beside it
    declares, or none.

    Args:
        path: a GGUF file, a safetensors file, or a directory with ``model.safetensors``, shards with an index, or one
            GGUF file.

    Raises:
        CheckpointError: no such file, a format that is not supported, or a damaged one.
        ModuleNotFoundError: a safetensors file, but the package safetensors is not installed.

    >>> import tempfile, torch, bittensor
    >>> from bittensor.checkpoints import save_checkpoint
    >>> weight = bittensor.quantize(torch.eye(32), group_size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(Path(folder, "model"), {"layer.weight": weight})
    ...     checkpoint = open_checkpoint(Path(folder, "model"))
    ...     checkpoint.format, checkpoint.entries["layer.weight"].type, checkpoint.read("layer.weight").equal(weight)
    ('bittensor', 'int4 group 32 symmetric', True)
    """
    path = Path(path)
    if path.is_dir():
        return _open_directory(path)
    try:
        with path.open("rb") as file:
            begin, size = file.read(9), path.stat().st_size
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from None
    if begin[:4] == MAGIC or path.suffix == ".gguf":
        return GgufCheckpoint(path)
    is_safetensors = begin[8:] == b"{" and int.from_bytes(begin[:8], "little") <= size - 8
    if not is_safetensors and begin.startswith(_PICKLES):
        raise CheckpointError(path, "a pickle of PyTorch, which can run code when it is read; save it as safetensors")
    return _open_safetensors(path, path.parent)


def _open_directory(path: Path) -> Checkpoint:
    if (path / WEIGHTS_NAME).is_file() or (path / INDEX_NAME).is_file():
        return _open_safetensors(path, path)
    try:
        files = sorted(file for file in path.iterdir() if file.suffix == ".gguf")
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from None
    if len(files) > 1:
        raise CheckpointError(path, f"has {len(files)} GGUF files; name one: {', '.join(file.name for file in files)}")
    if not files:
        raise CheckpointError(path, f"expected {WEIGHTS_NAME}, {INDEX_NAME} or a GGUF file in this directory")
    return GgufCheckpoint(files[0])


def _open_safetensors(path: Path, directory: Path) -> SafetensorsCheckpoint:
    files = SafetensorsFiles(path)
    config_path = directory / CONFIG_NAME
    config = read_json(config_path) if config_path.is_file() else {}
    return SafetensorsCheckpoint(path, files, config, _packed_format(path, directory, config, files))


def _packed_format(
    path: Path, directory: Path, config: Mapping[str, Any], files: SafetensorsFiles
) -> PackedFormat | None:
    config_path = directory / CONFIG_NAME
    quantization = take(config_path, config, QUANTIZATION_KEY, dict, {})
    method = take(config_path, quantization, "quant_method", str, "")
    for name, implied in OLDER_CONFIG_NAMES.items():
        if not quantization and (directory / name).is_file():
            config_path = directory / name
            quantization = read_json(config_path)
            method = take(config_path, quantization, "quant_method", str, implied)
    markers = {name.rpartition(".")[2] for name in files.tensors} & _FORMAT_OF_MARKER.keys()
    if not method:
        if markers == {NativeFormat.marker}:
            return NativeFormat()
        if markers:
            marker = min(markers)
            raise CheckpointError(
                path,
                f"it has tensors *.{marker}, quantized as {_FORMAT_OF_MARKER[marker]} does, but {config_path} does not "
                f"say how: expected {QUANTIZATION_KEY!r} there",
            )
        return None
    makers = {
        native.METHOD: _native,
        "gptq": _gptq,
        "awq": _awq,
        compressed_tensors.METHOD: _compressed_tensors,
    }
    if method not in makers:
        raise CheckpointError(
            config_path, f"quant_method {method!r} is not supported; can read {', '.join(sorted(makers))}"
        )
    packed = makers[method](config_path, quantization)
    if packed.marker not in markers:
        raise CheckpointError(path, f"{config_path.name} says {method}, but there is no tensor *.{packed.marker}")
    return packed


def _native(path: Path, config: Mapping[str, Any]) -> PackedFormat:
    version = take(path, config, "version", int)
    if version != native.VERSION:
        raise CheckpointError(path, f"expected version {native.VERSION} of the format, got {version}")
    return NativeFormat(take(path, config, "weights", dict))


def _gptq(path: Path, config: Mapping[str, Any]) -> PackedFormat:
    stored = take(path, config, "checkpoint_format", str, "gptq")
    versions = {"gptq": 1, "gptq_v2": 2}
    if stored not in versions:
        raise CheckpointError(path, f"checkpoint_format {stored!r} is not supported; can read {', '.join(versions)}")
    if take(path, config, "is_marlin_format", bool, False):
        raise CheckpointError(path, "weights in the order of Marlin are not supported; can read gptq, gptq_v2")
    return GptqFormat(_bits(path, config), _group_size(path, config), versions[stored])


def _awq(path: Path, config: Mapping[str, Any]) -> PackedFormat:
    version = take(path, config, "version", str, "gemm").lower()
    if version != "gemm":
        raise CheckpointError(path, f"AWQ version {version!r} is not supported; can read gemm")
    key = "bits" if "bits" in config else "w_bit"
    bits = take(path, config, key, int, AWQ_BITS)
    if bits != AWQ_BITS:
        raise CheckpointError(path, f"{key}: expected {AWQ_BITS} for AWQ, got {bits}")
    return AwqFormat(_group_size(path, config, "group_size" if "group_size" in config else "q_group_size"))


def _compressed_tensors(path: Path, config: Mapping[str, Any]) -> PackedFormat:
    for key in ("transform_config", "sparsity_config"):
        if take(path, config, key, dict, {}):
            raise CheckpointError(path, f"{key} is not supported: expected weights that are as they are multiplied")
    groups = take(path, config, "config_groups", dict)
    default = take(path, config, "format", str, compressed_tensors.FORMAT)
    schemes = []
    for name, group in groups.items():
        try:
            schemes.append(_scheme(path, group, default))
        except CheckpointError as error:
            raise CheckpointError(path, f"config_groups {name!r}: {error.reason}") from None
    return CompressedTensorsFormat(tuple(schemes))


def _scheme(path: Path, group: object, default: str) -> Scheme:
    """A group of the configuration in `path`; `default` is the format where it names none."""
    if not isinstance(group, dict):
        raise CheckpointError(path, f"expected an object, got {type(group).__name__}")
    stored = take(path, group, "format", str, default)
    if stored != compressed_tensors.FORMAT:
        raise CheckpointError(path, f"format {stored!r} is not supported; can read {compressed_tensors.FORMAT}")
    weights = take(path, group, "weights", dict)
    kind, strategy = take(path, weights, "type", str, "int"), take(path, weights, "strategy", str, "group")
    if kind != "int" or strategy not in ("group", "channel", "tensor"):
        raise CheckpointError(
            path,
            f"weights of type {kind!r} by {strategy!r} are not supported; can read "
            "type int by group, channel or tensor",
        )
    size = _group_size(path, weights) if strategy == "group" else -1
    return Scheme(_bits(path, weights, "num_bits"), None if size == -1 else size)


def _bits(path: Path, config: Mapping[str, Any], key: str = "bits") -> int:
    bits = int(take(path, config, key, int))
    if bits not in GROUP_BITS:
        raise CheckpointError(path, f"{key}: {bits} bits are not supported; can read {', '.join(map(str, GROUP_BITS))}")
    return bits


def _group_size(path: Path, config: Mapping[str, Any], key: str = "group_size") -> int:
    size = int(take(path, config, key, int, -1))
    if size != -1 and not 1 <= size < 2**31:
        raise CheckpointError(path, f"{key}: expected a number of columns, or -1 for one group a row, got {size}")
    return size
