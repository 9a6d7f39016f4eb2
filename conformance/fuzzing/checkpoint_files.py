"""Reading of checkpoints that a fuzzer wrote.

Files are either bytes as they come, or files of a format whose parts are chosen one by one: so a fuzzer reaches the
code behind the container. Whatever the file holds, reading it gives a `CheckpointError` or values that follow from its
bytes by the definition of the format, here once more in NumPy.
"""

from __future__ import annotations

import copy
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from bittensor.checkpoints import Checkpoint, ReorderedWeight, open_checkpoint
from bittensor.errors import CheckpointError

from .choices import Choices

Array = np.ndarray[Any, Any]
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Dtype, as safetensors names it, shape and bytes, by name."""

_NUMPY = {"I8": "i1", "U8": "u1", "I16": "i2", "I32": "i4", "I64": "i8", "F16": "f2", "F32": "f4", "F64": "f8"}
_BYTES = {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "I16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8}
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_SIZES = (1, 2, 3, 4, 8, 16, 17, 24, 32, 64, 0)
_WORDS: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 3, 4, 5, 8, 16, 32, 64, 128, 2**31, 2**63, 2**80, 0.5, "", "4", "int", "float", "group",
    "channel", "tensor", "gptq", "gptq_v2", "marlin", "gemm", "gemv", "pack-quantized", "symmetric", "integer",
    "float16", "float32", [], [1, 2], {}, {"weights": {}}, "m.weight",
)  # fmt: skip


def run(data: bytes) -> None:
    """Write the files that `data` describes, and read all of them."""
    choices = Choices(data)
    with tempfile.TemporaryDirectory() as folder:
        path, values = choices.one_of(_FILES)(choices, Path(folder))
        try:
            checkpoint = open_checkpoint(path)
        except CheckpointError:
            return
        for name in checkpoint.entries:
            _read(checkpoint, name, values)


def _read(checkpoint: Checkpoint, name: str, values: Callable[[Checkpoint, str], Array | None]) -> None:
    entry = checkpoint.entries[name]
    assert entry.values >= 0
    assert entry.bits_per_weight >= 0
    try:
        stored = checkpoint.read(name)
    except CheckpointError:
        return
    if tuple(stored.shape) != entry.shape:
        raise AssertionError(f"{name}: {entry.shape} was promised, {tuple(stored.shape)} was read")
    expected = values(checkpoint, name)
    if expected is None:
        return
    read = stored.to(torch.float32) if isinstance(stored, torch.Tensor) else stored.dequantize()
    if not np.array_equal(read.numpy(), expected, equal_nan=True):
        raise AssertionError(f"{name}: {read}\nexpected {expected}")


# Files as they come.


def _gguf_bytes(choices: Choices, folder: Path) -> Any:
    path = folder / "model.gguf"
    path.write_bytes(choices.rest())
    return path, _gguf_values


def _safetensors_bytes(choices: Choices, folder: Path) -> Any:
    """A configuration, a zero byte, and the file."""
    config, _, file = choices.rest().partition(b"\0")
    if config:
        (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").write_bytes(file)
    return folder, _no_values


def _index_bytes(choices: Choices, folder: Path) -> Any:
    """An index, beside one sound shard."""
    _write_safetensors(folder / "a.safetensors", {"t": ("F32", (2,), bytes(8))})
    (folder / "model.safetensors.index.json").write_bytes(choices.rest())
    return folder, _no_values


# GGUF, built from choices.


def _gguf_parts(choices: Choices, folder: Path) -> Any:
    tensors, pairs = choices.below(4), choices.below(4)
    out = b"GGUF" + struct.pack("<IQQ", choices.one_of((3, 2)), _count(choices, tensors), _count(choices, pairs))
    for index in range(pairs):
        out += _string(choices, ("general.alignment", "general.architecture", "k")[index % 3]) + _gguf_value(choices)
    offset, blob = 0, b""
    for index in range(tensors):
        number = choices.one_of((0, 1, 2, 3, 8, 12, 14, 24, 30, 28, 27, 99, 6))
        type_ = gguf.GGML_QUANT_SIZES.get(number, (1, 4))
        rank = choices.one_of((2, 1, 2, 3, 0, 5))
        shape = [choices.one_of(_SIZES) for _ in range(rank)]
        if shape:
            shape[0] *= type_[0]
        shape = [_count(choices, size) for size in shape]
        out += _string(choices, f"t{index}") + struct.pack("<I", rank) + struct.pack(f"<{rank}Q", *shape)
        out += struct.pack("<IQ", number, _count(choices, offset))
        nbytes = int(np.prod([min(size, 4096) for size in shape])) // type_[0] * type_[1]
        piece = choices.generator().integers(0, 256, min(nbytes, 1 << 15), dtype=np.uint8).tobytes()
        blob += piece + bytes(-len(piece) % 32)
        offset = len(blob)
    path = folder / "model.gguf"
    path.write_bytes(out + bytes(-len(out) % 32) + blob[: len(blob) - choices.one_of((0, 0, 0, 1, 31, 40))])
    return path, _gguf_values


def _gguf_value(choices: Choices) -> bytes:
    number = choices.one_of((8, 4, 9, 6, 7, 0, 1, 2, 3, 5, 10, 11, 12, 13))
    sizes = {0: 1, 1: 1, 7: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 10: 8, 11: 8, 12: 8}
    if number == 8:
        return struct.pack("<I", 8) + _string(choices, "text")
    if number == 9:
        element, count = choices.one_of((4, 8, 7, 9, 12)), choices.below(5)
        piece = b"".join(_string(choices, "e") if element == 8 else choices.take(sizes.get(element, 4))
                         for _ in range(count))  # fmt: skip
        return struct.pack("<IIQ", 9, element, _count(choices, count)) + piece
    return struct.pack("<I", number) + choices.take(sizes.get(number, 4))


def _string(choices: Choices, text: str) -> bytes:
    content = text.encode() if choices.below(8) else choices.take(choices.below(5))
    return struct.pack("<Q", _count(choices, len(content))) + content


def _count(choices: Choices, count: int) -> int:
    """`count`, or one time in sixteen a number that is not true."""
    if choices.below(16) != 1:
        return count
    return choices.one_of((count + 1, 0, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1, max(0, count - 1)))


# Quantized safetensors, built from choices.


def _packed_parts(choices: Choices, folder: Path) -> Any:
    method = choices.one_of(("gptq", "awq", "compressed-tensors", "bittensor"))
    bits = choices.one_of((4, 8, 2)) if method != "awq" else 4
    outputs, columns = choices.one_of((8, 16, 32, 24)), choices.one_of((32, 64, 16, 96, 48))
    group_size = choices.one_of((16, 32, -1, 8, 128))
    config, tensors = _MAKERS[method](choices, bits, outputs, columns, group_size)
    if choices.below(4) == 1:
        tensors["m.bias"] = _tensor(choices, "F16", (outputs,))
    for _ in range(max(0, choices.below(6) - 3)):
        if tensors:
            _spoil_tensor(choices, tensors)
    config = {"quantization_config": {"quant_method": method, **config}}
    for _ in range(max(0, choices.below(6) - 3)):
        _spoil_config(choices, config)
    (folder / "config.json").write_text(json.dumps(config))
    _write_safetensors(folder / "model.safetensors", tensors)

    def values(checkpoint: Checkpoint, name: str) -> Array | None:
        return None if name == "m.bias" else _packed_values(checkpoint, name, config, tensors)

    return folder, values


def _gptq(choices: Choices, bits: int, outputs: int, columns: int, group_size: int) -> tuple[dict[str, Any], Tensors]:
    size = columns if group_size == -1 else group_size
    groups = -(-columns // size)
    tensors = {
        "m.qweight": _tensor(choices, "I32", (columns * bits // 32, outputs)),
        "m.qzeros": _tensor(choices, "I32", (groups, -(-outputs * bits // 32))),
        "m.scales": _tensor(choices, "F16", (groups, outputs)),
    }
    if choices.below(2):
        g_idx = np.arange(columns, dtype=np.int32) // size
        if choices.below(2):
            choices.generator().shuffle(g_idx)
        tensors["m.g_idx"] = ("I32", (columns,), g_idx.tobytes())
    config = {"bits": bits, "group_size": group_size, "checkpoint_format": choices.one_of(("gptq", "gptq_v2"))}
    return config, tensors


def _awq(choices: Choices, bits: int, outputs: int, columns: int, group_size: int) -> tuple[dict[str, Any], Tensors]:
    groups = -(-columns // (columns if group_size == -1 else group_size))
    tensors = {
        "m.qweight": _tensor(choices, "I32", (columns, outputs // 8)),
        "m.qzeros": _tensor(choices, "I32", (groups, outputs // 8)),
        "m.scales": _tensor(choices, "F16", (groups, outputs)),
    }
    return {"bits": bits, "group_size": group_size, "version": "gemm"}, tensors


def _compressed(
    choices: Choices, bits: int, outputs: int, columns: int, group_size: int
) -> tuple[dict[str, Any], Tensors]:
    groups = -(-columns // (columns if group_size == -1 else min(group_size, columns)))
    tensors = {
        "m.weight_packed": _tensor(choices, "I32", (outputs, -(-columns * bits // 32))),
        "m.weight_scale": _tensor(choices, choices.one_of(("F16", "F32")), (outputs, groups)),
        "m.weight_shape": ("I64", (2,), np.array([outputs, columns], dtype=np.int64).tobytes()),
    }
    zero = choices.below(3)
    if zero == 1:
        tensors["m.weight_zero_point"] = _tensor(choices, "I32", (-(-outputs * bits // 32), groups))
    if zero == 2:
        tensors["m.weight_zero_point"] = _tensor(choices, "I8", (outputs, groups))
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": not zero,
        "strategy": "channel" if group_size == -1 else "group",
        "group_size": None if group_size == -1 else group_size,
    }
    config = {"format": "pack-quantized", "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    return config, tensors


def _native(choices: Choices, bits: int, outputs: int, columns: int, group_size: int) -> tuple[dict[str, Any], Tensors]:
    size = columns if group_size == -1 else min(group_size, columns)
    groups, zero = -(-columns // size), choices.below(3)
    form = [1, outputs, columns, bits, size, zero, 0]
    tensors = {
        "m.words": _tensor(choices, "I64", (outputs, -(-columns * bits // 64))),
        "m.scales": _tensor(choices, "F16", (outputs, groups)),
        "m.form": ("I64", (7,), np.array(form, dtype=np.int64).tobytes()),
    }
    if zero == 1:
        zeros = choices.generator().integers(0, 1 << bits, (outputs, groups), dtype=np.uint8)
        tensors["m.zeros"] = ("U8", (outputs, groups), zeros.tobytes())
    if zero == 2:
        tensors["m.offsets"] = _tensor(choices, "F16", (outputs, groups))
    if choices.below(4) == 1:
        order = choices.generator().permutation(columns).astype(np.int64)
        tensors["m.order"] = ("I64", (columns,), order.tobytes())
    kinds = ("symmetric", "integer", "float")
    weight = {"shape": [outputs, columns], "bits": bits, "group_size": size, "zero": kinds[zero],
              "scale_dtype": "float16"}  # fmt: skip
    return {"version": 1, "weights": {"m.weight": weight}}, tensors


_MAKERS = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed, "bittensor": _native}


def _tensor(choices: Choices, dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], bytes]:
    generator = choices.generator()
    if dtype in ("F16", "F32"):
        return dtype, shape, generator.normal(size=shape).astype(_NUMPY[dtype]).tobytes()
    return dtype, shape, generator.integers(0, 256, int(np.prod(shape)) * _BYTES[dtype], dtype=np.uint8).tobytes()


def _spoil_tensor(choices: Choices, tensors: Tensors) -> None:
    name = choices.one_of(tuple(tensors))
    dtype, shape, content = tensors[name]
    kind = choices.below(6)
    if kind == 0:
        del tensors[name]
        return
    if kind == 1:
        dtype = choices.one_of(tuple(_BYTES))
    if kind == 2:
        shape = tuple(choices.one_of(_SIZES) for _ in range(choices.below(4)))
    if kind == 3:
        shape = (*shape[:-1], 0, choices.one_of((2**31, 2**62, 2**63, 1)))
    if kind == 4:
        name = choices.one_of(("m.weight", "m.weight_g_idx", "m.g_idx", "m.zeros", "m.order", "m.words", "n.qweight"))
    if kind == 5 and content:
        place = choices.below(256) % len(content)
        content = content[:place] + choices.take(1) + content[place + 1 :]
    size = int(np.prod([int(each) for each in shape], dtype=object)) * _BYTES[dtype]
    tensors[name] = (dtype, shape, (content * (1 + size // max(1, len(content))))[:size] if content else bytes(size))


def _spoil_config(choices: Choices, config: dict[str, Any]) -> None:
    """Replace a value anywhere in the configuration, or take it out."""
    place: Any = config
    while place:
        key = choices.one_of(tuple(place))
        if isinstance(place[key], dict) and place[key] and choices.below(4):
            place = place[key]
            continue
        if choices.below(4) == 1:
            del place[key]
        else:
            place[key] = copy.deepcopy(choices.one_of(_WORDS))  # the next may spoil what is in it
        return


def _write_safetensors(path: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {}
    blob = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(blob), len(blob) + len(content)]}
        blob += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)


# What the formats define.


def _no_values(checkpoint: Checkpoint, name: str) -> Array | None:
    return None


def _gguf_values(checkpoint: Checkpoint, name: str) -> Array | None:
    """By the package gguf, from the bytes at the place that the header names."""
    entry, tensor = checkpoint.entries[name], checkpoint._tensors[name]  # type: ignore[attr-defined]
    if not all(entry.shape) or tensor.type.name not in ("F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"):
        return None
    with checkpoint.path.open("rb") as file:
        file.seek(tensor.offset)
        content = np.frombuffer(file.read(tensor.nbytes), dtype=np.uint8)
    type_ = gguf.GGMLQuantizationType[tensor.type.name]
    with np.errstate(all="ignore"):
        if tensor.type.name in ("F32", "F16"):
            values = content.view("f4" if tensor.type.name == "F32" else "f2").astype(np.float32)
        else:
            values = gguf.quants.dequantize(content.reshape(-1, tensor.type.nbytes), type_)
    expected: Array = values.reshape(entry.shape)
    return expected


def _packed_values(checkpoint: Checkpoint, name: str, config: dict[str, Any], tensors: Tensors) -> Array | None:
    """By the definitions at the head of the readers, one code at a time."""
    stored = checkpoint.read(name)
    if isinstance(stored, torch.Tensor) or not name.startswith("m."):
        return None
    weight = stored.weight if isinstance(stored, ReorderedWeight) else stored
    bits, size = weight.bits, weight.group_size
    parts = {each.partition(".")[2]: _array(*tensor) for each, tensor in tensors.items() if each.startswith("m.")}
    outputs, columns = weight.shape
    group = np.arange(columns) // size
    zeros: Array | None = None
    order = None
    if checkpoint.format == "gptq":
        codes = _codes(parts["qweight"].T, bits)[:, :columns]
        points = parts["qzeros"].view("u4")
        if config["quantization_config"].get("checkpoint_format") in (None, "gptq"):  # one less, in whole words
            points = points + np.uint32(sum(1 << place for place in range(0, 32, bits)))
        zeros = _codes(points, bits)[:, :outputs].T
        scales = parts["scales"].T
        group = parts.get("g_idx", group)
    elif checkpoint.format == "awq":
        unmixed = np.argsort(_AWQ_ORDER)
        codes, zeros = (
            _codes(parts[part], 4).reshape(len(parts[part]), -1, 8)[..., unmixed].reshape(len(parts[part]), -1).T
            for part in ("qweight", "qzeros")
        )
        scales = parts["scales"].T
    elif checkpoint.format == "compressed-tensors":
        codes = _codes(parts["weight_packed"], bits)[:, :columns]
        scales = np.broadcast_to(parts["weight_scale"].reshape(-1, 1), (outputs, 1)) if parts[
            "weight_scale"].size == 1 else parts["weight_scale"]  # fmt: skip
        if "weight_zero_point" in parts:
            point = parts["weight_zero_point"]
            zeros = point.astype(int) + (1 << bits - 1) if point.dtype == "i1" else _codes(point.T, bits)[:, :outputs].T
            zeros = np.broadcast_to(zeros.reshape(1, 1), (outputs, 1)) if zeros.size == 1 else zeros
        index = parts.get("weight_g_idx")
        group = group if index is None or (index == -1).all() else index
    else:
        words = parts["words"].view("<u4").reshape(outputs, -1)
        codes, scales = _codes(words, bits)[:, :columns], parts["scales"]
        zeros, order = parts.get("zeros"), parts.get("order")
    shift = np.full(scales.shape, 1 << bits - 1) if zeros is None else zeros
    scales = scales.astype(np.float32)
    with np.errstate(all="ignore"):
        if "offsets" in parts and checkpoint.format == "bittensor":
            values = codes.astype(np.float32) * scales[:, group] + parts["offsets"].astype(np.float32)[:, group]
        else:
            values = (codes - shift[:, group]).astype(np.float32) * scales[:, group]
    if order is None:
        return values
    expected = np.empty_like(values)
    expected[:, order] = values
    return expected


def _array(dtype: str, shape: tuple[int, ...], content: bytes) -> Array:
    shape = shape if content else (0,)  # NumPy refuses sizes that torch accepts beside a 0
    if dtype == "BF16":
        widened: Array = (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return widened
    return np.frombuffer(content, _NUMPY.get(dtype, "u1")).reshape(shape)


def _codes(words: Array, bits: int) -> Array:
    """Words of 32 bits ``[rows, W]`` to codes ``[rows, W * 32 / bits]``, lowest bits first."""
    unsigned = np.ascontiguousarray(words).view("<u4").astype(np.int64)
    codes = unsigned[..., None] >> np.arange(0, 32, bits) & (1 << bits) - 1
    return codes.reshape(len(words), -1)


_FILES: tuple[Callable[[Choices, Path], Any], ...] = (
    _packed_parts,
    _gguf_parts,
    _gguf_bytes,
    _safetensors_bytes,
    _index_bytes,
)
