"""GGUF files: read losslessly, and refused with a reason when they are damaged."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import bittensor
from bittensor.checkpoints import open_checkpoint
from bittensor.checkpoints.gguf_blocks import DECODERS
from bittensor.checkpoints.gguf_container import BLOCK_TYPES

QUANTIZED = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")
PLAIN = {"F32": torch.float32, "F16": torch.float16, "I32": torch.int32}


HEADER = b"GGUF" + struct.pack("<I", 3)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def random_blocks(type_name: str, rows: int, columns: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Rows of random blocks: any byte is a valid code; the float16 numbers among them are made finite."""
    generator = np.random.default_rng(seed)
    type_ = gguf.GGMLQuantizationType[type_name]
    values, size = gguf.GGML_QUANT_SIZES[type_]
    blocks = generator.integers(0, 256, (rows, columns // values, size), dtype=np.uint8)
    halves = {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}
    for start in halves.get(type_name, ()):
        numbers = generator.normal(size=(*blocks.shape[:2], 1)).astype(np.float16)
        blocks[..., start : start + 2] = numbers.view(np.uint8)
    return blocks.reshape(rows, -1)


def write(path: Path, tensors: dict[str, tuple[np.ndarray[Any, Any], str]], **metadata: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}[
            type(value)
        ](key, value)
    for name, (data, type_name) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file with one tensor of each kind."""
    return write(
        tmp_path / "small.gguf",
        {
            "weight": (random_blocks("Q4_1", 3, 64), "Q4_1"),
            "norm": (np.arange(5, dtype=np.float32), "F32"),
        },
        words=["a", "b c", "é"],
        numbers=[1, 2, 3],
        ratio=0.5,
        count=7,
    )


@pytest.mark.parametrize("columns", [256, 512 + 256])
@pytest.mark.parametrize("type_name", QUANTIZED)
def test_values_are_those_of_the_format(type_name: str, columns: int, tmp_path: Path) -> None:
    blocks = random_blocks(type_name, 5, columns)
    checkpoint = open_checkpoint(write(tmp_path / "x.gguf", {"weight": (blocks, type_name)}))
    weight = checkpoint.read("weight")
    assert isinstance(weight, bittensor.QuantizedWeight)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type_name])
    assert torch.equal(weight.dequantize(), torch.from_numpy(expected))
    assert checkpoint.entries["weight"].shape == (5, columns)
    assert checkpoint.entries["weight"].nbytes == blocks.nbytes
    decoder = DECODERS[type_name]
    form = (weight.bits, weight.group_size, weight.zero, weight.form.scale_dtype)
    assert form == (decoder.bits, decoder.group_size, decoder.zero, decoder.scale_dtype)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q8_0"])
def test_as_small_as_the_file(type_name: str, tmp_path: Path) -> None:
    blocks = random_blocks(type_name, 4, 128)
    weight = open_checkpoint(write(tmp_path / "x.gguf", {"w": (blocks, type_name)})).read("w")
    assert isinstance(weight, bittensor.QuantizedWeight)
    assert weight.nbytes == blocks.nbytes


def test_rows_are_decoded_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = random_blocks("Q4_1", 7, 64)
    path = write(tmp_path / "x.gguf", {"w": (blocks, "Q4_1")})
    whole = open_checkpoint(path).read("w")
    monkeypatch.setattr("bittensor.checkpoints.gguf._VALUES_AT_ONCE", 128)
    parts = open_checkpoint(path).read("w")
    assert isinstance(whole, bittensor.QuantizedWeight)
    assert isinstance(parts, bittensor.QuantizedWeight)
    assert whole.equal(parts)


@pytest.mark.parametrize("type_name", PLAIN)
def test_plain_tensors(type_name: str, tmp_path: Path) -> None:
    values = (torch.arange(24).reshape(2, 3, 4) - 9).to(PLAIN[type_name])
    read = open_checkpoint(write(tmp_path / "x.gguf", {"t": (values.numpy(), type_name)})).read("t")
    assert isinstance(read, torch.Tensor)
    assert read.dtype is values.dtype
    assert torch.equal(read, values)


def test_bfloat16(tmp_path: Path) -> None:
    values = torch.randn(2, 4).to(torch.bfloat16)
    bits = values.view(torch.uint8).numpy()
    read = open_checkpoint(write(tmp_path / "x.gguf", {"t": (bits, "BF16")})).read("t")
    assert isinstance(read, torch.Tensor)
    assert torch.equal(read, values)


def test_metadata(small: Path) -> None:
    config = open_checkpoint(small).config
    assert config["general.architecture"] == "llama"
    assert config["words"] == ["a", "b c", "é"]
    assert (list(config["numbers"]), config["ratio"], config["count"]) == ([1, 2, 3], 0.5, 7)


ONE_PAIR = HEADER + struct.pack("<QQ", 0, 1)


@pytest.mark.parametrize(("type_", "code", "values"), [(7, "B", (0, 1)), (0, "B", (0, 200)), (12, "d", (0.5, -1.0))])
def test_arrays_take_the_memory_of_their_bytes(
    type_: int, code: str, values: tuple[float, float], tmp_path: Path
) -> None:
    path, count = tmp_path / "x.gguf", 1 << 17
    content = struct.pack(f"<{2 * count}{code}", *values * count)
    path.write_bytes(ONE_PAIR + string("k") + struct.pack("<IIQ", 9, type_, 2 * count) + content)
    tracemalloc.start()
    read = open_checkpoint(path).config["k"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(read), tuple(read[-2:])) == (2 * count, values)
    assert peak < 2.5 * len(content) + (1 << 18), "the bytes, and the array"


@pytest.mark.parametrize(
    ("element", "count", "reason"),
    [
        (4, 1 << 27, f"k: {1 << 27} of at least 4 bytes each; expected a header of at most {1 << 28} bytes"),
        (8, (1 << 22) + 1, f"k: expected at most {1 << 22} strings in all arrays, got {(1 << 22) + 1}"),
    ],
)
def test_arrays_that_are_out_of_proportion(element: int, count: int, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(ONE_PAIR + string("k") + struct.pack("<IIQ", 9, element, count))
    os.truncate(path, 1 << 30)  # a hole, which takes no room on the disk
    with pytest.raises(bittensor.CheckpointError, match=reason):
        open_checkpoint(path)


def test_a_part_of_a_model(tmp_path: Path) -> None:
    tensors = {"t": (np.arange(5, dtype=np.float32), "F32")}
    path = write(tmp_path / "x-00001-of-00003.gguf", tensors, **{"split.no": 0, "split.count": 3})
    with pytest.raises(bittensor.CheckpointError, match="got one of 3 parts of it; join them with llama-gguf-split"):
        open_checkpoint(path)
    assert "t" in open_checkpoint(write(tmp_path / "merged.gguf", tensors, **{"split.count": 0}))


def test_sizes_of_types_are_those_of_the_format() -> None:
    for number, type_ in BLOCK_TYPES.items():
        known = gguf.GGMLQuantizationType(number)
        assert (type_.name, type_.values, type_.nbytes) == (known.name, *gguf.GGML_QUANT_SIZES[known])


@pytest.mark.parametrize("type_name", ["Q5_0", "Q5_K", "Q2_K", "IQ4_NL", "NVFP4", "Q1_0"])
def test_types_that_cannot_be_read_are_named(type_name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "x.gguf", {"odd": (random_blocks(type_name, 2, 256), type_name)}))
    assert checkpoint.entries["odd"].type == type_name, "it can be listed"
    with pytest.raises(bittensor.CheckpointError, match=f"x.gguf, tensor 'odd': type {type_name} is not supported"):
        checkpoint.read("odd")


def test_a_scale_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    blocks = random_blocks("Q4_1", 2, 64)
    blocks[1, :2] = np.array([np.inf], dtype=np.float16).view(np.uint8)
    checkpoint = open_checkpoint(write(tmp_path / "x.gguf", {"w": (blocks, "Q4_1")}))
    with pytest.raises(
        bittensor.CheckpointError, match=r"tensor 'w': scales: expected finite values, got inf at index"
    ):
        checkpoint.read("w")


def test_more_than_two_dimensions_are_refused(tmp_path: Path) -> None:
    blocks = random_blocks("Q8_0", 4, 64).reshape(2, 2, -1)
    checkpoint = open_checkpoint(write(tmp_path / "x.gguf", {"experts": (blocks, "Q8_0")}))
    with pytest.raises(bittensor.CheckpointError, match="tensor 'experts': Q8_0: expected two dimensions"):
        checkpoint.read("experts")


def read_all(path: Path) -> None:
    for _ in open_checkpoint(path).tensors():
        pass


def test_truncated_anywhere(small: Path) -> None:
    """Every shorter file is refused, but for one that lacks only the padding at its end."""
    content = small.read_bytes()
    header = open_checkpoint(small)
    end = max(tensor.offset + tensor.nbytes for tensor in header._tensors.values())  # type: ignore[attr-defined]
    for length in range(end):
        small.write_bytes(content[:length])
        with pytest.raises(bittensor.CheckpointError, match=r"small\.gguf"):
            read_all(small)


def test_every_byte_changed(small: Path) -> None:
    """A wrong byte gives other values or a `CheckpointError`: nothing else, and no allocation out of proportion."""
    content = small.read_bytes()
    begin = min(tensor.offset for tensor in open_checkpoint(small)._tensors.values())  # type: ignore[attr-defined]
    refused = 0
    for position in range(begin):
        for value in (0, 0x7F, 0xFF):
            small.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
            try:
                read_all(small)
            except bittensor.CheckpointError:
                refused += 1
    assert refused > begin // 2


def description(name: str, shape: tuple[int, ...], type_: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], type_, offset)


def one_tensor(*described: bytes, data: bytes = b"\0" * 64) -> bytes:
    content = HEADER + struct.pack("<QQ", len(described), 0) + b"".join(described)
    return content + b"\0" * (-len(content) % 32) + data


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file ends at 0 bytes"),
        (b"GGML" + bytes(20), "not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(64), "expected GGUF version 2 or 3, got 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(64), "big-endian"),
        (HEADER + struct.pack("<QQ", 2**63, 0), f"tensors: {2**63} of at least 24 bytes each"),
        (HEADER + struct.pack("<QQ", 0, 2**40), "metadata entries: "),
        (HEADER + struct.pack("<QQ", 0, 1) + string("k") + struct.pack("<IIQ", 9, 0, 2**60), "k: .* only 0 bytes"),
        (HEADER + struct.pack("<QQ", 0, 1) + string("k") + struct.pack("<IIQ", 9, 8, 2**60), "k: .* only 0 bytes"),
        (HEADER + struct.pack("<QQ", 0, 1) + string("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(16), "has type 9"),
        (HEADER + struct.pack("<QQ", 0, 1) + string("k") + struct.pack("<IQ", 8, 2**62), "only 0 bytes are left"),
        (HEADER + struct.pack("<QQ", 0, 1) + string("k") + struct.pack("<I", 99) + bytes(9), "has type 99"),
        (one_tensor(description("t", (2**40, 2**40), 0, 0)), "tensor 't': no tensor can have the shape"),
        (one_tensor(description("t", (4,), 0, 2**63)), "tensor 't': F32 .* the file ends"),
        (one_tensor(description("t", (4,), 0, 8)), "tensor 't': its offset 8 is not a multiple"),
        (one_tensor(description("t", (4,), 77, 0)), "tensor 't': type 77 is not known"),
        (one_tensor(description("t", (2, 33), 3, 0)), "tensor 't': Q4_1 needs rows of a multiple of 32"),
        (one_tensor(string("t") + struct.pack("<I", 9) + bytes(96)), "tensor 't': expected at most 4 dimensions"),
        (one_tensor(description("t", (4,), 0, 0), description("t", (4,), 0, 32)), "tensor 't': .* two tensors of"),
        (
            one_tensor(description("a", (16,), 0, 0), description("b", (8,), 0, 32)),
            "tensor 'b': .* those of tensor 'a'",
        ),
        (HEADER + struct.pack("<QQQ", 0, 1, 2) + b"\xff\xfe" + bytes(12), "a metadata key is not UTF-8"),
    ],
)
def test_hostile_headers(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(bittensor.CheckpointError, match=reason) as caught:
        read_all(path)
    assert str(path) in str(caught.value)


def test_a_file_truncated_after_it_was_opened(small: Path) -> None:
    checkpoint = open_checkpoint(small)
    small.write_bytes(small.read_bytes()[:-96])
    with pytest.raises(bittensor.CheckpointError, match="truncated since"):
        dict(checkpoint.tensors())
