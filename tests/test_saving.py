"""Our own checkpoints: what is written is read back, whole or not at all, and damage is named."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bittensor
from bittensor.checkpoints import ReorderedWeight, open_checkpoint, save_checkpoint, save_compressed_tensors
from bittensor.checkpoints.saving import _DTYPES


def weights() -> dict[str, Any]:
    """One weight of each kind, and plain tensors."""
    torch.manual_seed(0)
    tied = torch.randn(6, 4)
    kinds = {
        f"{zero}{bits}.weight": bittensor.quantize(torch.randn(5, 40), bits, 16, zero, scale_dtype=dtype)
        for zero, dtype in (("symmetric", torch.float16), ("integer", torch.bfloat16), ("float", torch.float32))
        for bits in (2, 4, 8)
    }
    reordered = ReorderedWeight(bittensor.quantize(torch.randn(3, 32), group_size=8), torch.randperm(32))
    return kinds | {
        "reordered.weight": reordered,
        "symmetric4.bias": torch.randn(5),
        "embedding.weight": tied,
        "head.weight": tied,
        "transposed": torch.randn(3, 2).t(),
        "empty": torch.zeros(0, 3),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    save_checkpoint(path, weights(), {"model_type": "test"})
    return path


def read_all(path: Path) -> dict[str, Any]:
    return dict(open_checkpoint(path).tensors())


def test_what_is_written_is_read_back(saved: Path) -> None:
    expected, read = weights(), read_all(saved)
    assert read.keys() == expected.keys()
    for name, one in expected.items():
        other = read[name]
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other), name
        elif isinstance(one, ReorderedWeight):
            assert one.weight.equal(other.weight), name
            assert torch.equal(one.order, other.order), name
        else:
            assert one.equal(other), name
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "test"
    assert config["quantization_config"]["quant_method"] == "bittensor"
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert [file.name for file in saved.parent.iterdir()] == ["model"], "no temporary file is left"


def test_a_file_alone_is_enough(saved: Path, tmp_path: Path) -> None:
    shutil.move(saved / "model.safetensors", tmp_path / "alone.safetensors")
    read = open_checkpoint(tmp_path / "alone.safetensors")
    assert read.format == "bittensor"
    assert read.entries["integer2.weight"].type == "int2 group 16 integer"


def test_load_state_dict_takes_it(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    config = bittensor.QuantizeConfig(group_size=32)
    tensors: dict[str, Any] = {}
    for name, layer in model.named_children():
        if isinstance(layer, torch.nn.Linear):
            tensors[f"{name}.weight"] = config.quantize(layer.weight)
            tensors[f"{name}.bias"] = layer.bias
    save_checkpoint(tmp_path / "model", tensors)
    x = torch.randn(3, 64)
    bittensor.quantize_(model, config)
    expected = model(x)
    other = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    bittensor.quantize_(other, config)
    other.load_state_dict(load_file(tmp_path / "model" / "model.safetensors"))
    assert torch.equal(other(x), expected)


def test_files_are_copied(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    save_checkpoint(tmp_path / "out", {"a": torch.ones(1)}, files={"tokenizer.json": tmp_path / "tokenizer.json"})
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert open_checkpoint(tmp_path / "out").format == "safetensors"


@pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:Sparse CSR", "ignore:.*quantize")
@pytest.mark.parametrize("save", [save_checkpoint, save_compressed_tensors])
@pytest.mark.parametrize(
    ("make", "config", "reason"),
    [
        (lambda: torch.ones(2, device="meta"), {}, "a: expected a tensor with values, got one on the device meta"),
        (lambda: torch.eye(2).to_sparse(), {}, r"a: expected a dense tensor, got torch\.sparse_coo"),
        (lambda: torch.eye(2).to_sparse_csr(), {}, r"a: expected a dense tensor, got torch\.sparse_csr"),
        (lambda: torch.zeros(2, dtype=torch.complex32), {}, r"a: expected a dtype .*, got torch\.complex32"),
        (lambda: torch.zeros(2, dtype=torch.complex128), {}, r"a: expected a dtype .*, got torch\.complex128"),
        (lambda: torch.ones(2), {"dtype": torch.float32}, "config: expected what JSON can hold: Object of type dtype"),
        (lambda: torch.ones(2), {(1, 2): 3}, "config: expected what JSON can hold: keys must be"),
    ],
)
def test_what_cannot_be_written_is_refused_first(
    make: Callable[[], torch.Tensor], config: Any, reason: str, save: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        save(tmp_path / "out", {"a": make()}, config)
    assert list(tmp_path.iterdir()) == []


def test_every_dtype_of_safetensors(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.tensor([1, 0, 1]).to(dtype) for dtype in _DTYPES}
    tensors["conjugate"] = torch.tensor([1 + 2j], dtype=torch.complex64).conj()
    save_checkpoint(tmp_path / "out", tensors)
    for name, tensor in read_all(tmp_path / "out").items():
        assert tensor.dtype == tensors[name].dtype
        assert tensor.tolist() == tensors[name].tolist(), name


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"layer": bittensor.quantize(torch.eye(8), group_size=8)}, "to end with '.weight', got 'layer'"),
        (
            {"a.weight": bittensor.quantize(torch.eye(8), group_size=8), "a.scales": torch.ones(1)},
            "two tensors would be stored as 'a.scales'",
        ),
    ],
)
def test_names_that_do_not_fit(tensors: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        save_checkpoint(tmp_path / "out", tensors)
    assert list(tmp_path.iterdir()) == []


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_checkpoint(path, {"a.weight": bittensor.quantize(torch.eye(8), group_size=8), "b": torch.ones(2)})
    for name in ("model.safetensors", "config.json"):
        content = (path / name).read_bytes()
        for length in range(0, len(content) - 1, 7):
            (path / name).write_bytes(content[:length])
            with pytest.raises(bittensor.CheckpointError, match=str(path)):
                read_all(path)
        (path / name).write_bytes(content)
    read_all(path)


def test_every_byte_of_the_header_changed(tmp_path: Path) -> None:
    """A wrong byte gives other names or values, or a `CheckpointError`: nothing else."""
    save_checkpoint(tmp_path / "model", {"a.weight": bittensor.quantize(torch.eye(8), group_size=8)})
    file = tmp_path / "model" / "model.safetensors"
    content = file.read_bytes()
    refused = 0
    end = 8 + struct.unpack("<Q", content[:8])[0]
    for position in range(end):
        for value in (0, ord("9"), 0xFF):
            file.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
            try:
                read_all(tmp_path / "model")
            except bittensor.CheckpointError:
                refused += 1
    assert refused > end


def header(tensors: dict[str, Any], length: int | None = None, data: bytes = bytes(64)) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        header({}, 2**62),
        header({"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 4]}}),
        header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]}}),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 64]}}),
        header({"a": {"dtype": "Q9", "shape": [16], "data_offsets": [0, 64]}}),
        header({"a": {"dtype": "F32", "shape": [32], "data_offsets": [0, 128]}}),
        header({"a": {"dtype": "F32", "shape": [8], "data_offsets": [32, 64]}}),
        b"[" * 100000,
    ],
)
def test_lying_headers(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(bittensor.CheckpointError, match=r"x\.safetensors: not a valid safetensors file"):
        read_all(path)


WRONG: dict[str, dict[str, Any]] = {
    "words: expected int64 .*, got int32": {"words": torch.zeros(8, 1).int()},
    r"words: expected int64 \[8, 1\], got int64 \[8, 2\]": {"words": torch.zeros(8, 2).long()},
    "scales: missing": {"scales": None},
    "form: missing": {"form": None},
    "form: expected version 1 of the format, got 9": {"form": torch.tensor([9, 8, 8, 4, 8, 0, 2])},
    r"form: expected int64 \[7\]": {"form": torch.zeros(3).long()},
    "form: no kind of zero 7": {"form": torch.tensor([1, 8, 8, 4, 8, 7, 2])},
    "form: says": {"form": torch.tensor([1, 8, 8, 8, 8, 0, 2])},
    "shape: expected": {"form": torch.tensor([1, -8, 8, 4, 8, 0, 2])},
    "scales: expected finite values": {"scales": torch.full((8, 1), torch.inf)},
    "form: says zero 'symmetric'": {"zeros": torch.zeros(8, 1).byte()},
    r"order: expected each of 0\.\.7 once": {"order": torch.zeros(8).long()},
}


@pytest.mark.parametrize("reason", WRONG)
def test_parts_that_do_not_fit(reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_checkpoint(path, {"a.weight": bittensor.quantize(torch.eye(8), group_size=8)})
    tensors = load_file(path / "model.safetensors")
    tensors |= {f"a.{part}": tensor for part, tensor in WRONG[reason].items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path / "model.safetensors")
    with pytest.raises(bittensor.CheckpointError, match=r"tensor 'a\.weight': .*" + reason):
        read_all(path)


def test_config_and_file_must_agree(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    described = config["quantization_config"]["weights"]
    described["absent.weight"] = described["float4.weight"]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(bittensor.CheckpointError, match=r"tensor 'absent\.weight': missing"):
        open_checkpoint(saved)
    del described["absent.weight"], described["float4.weight"]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(bittensor.CheckpointError, match=r"tensor 'float4\.weight': form: says .* but config.json None"):
        open_checkpoint(saved)
    config["quantization_config"]["version"] = 2
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(bittensor.CheckpointError, match="expected version 1 of the format, got 2"):
        open_checkpoint(saved)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "expected a JSON object, got list"),
        ("{", "not JSON"),
        ('{"a":' * 100000, "nested too deeply|not JSON"),
        ('{"quantization_config": 3}', "'quantization_config': expected an object, got int 3"),
    ],
)
def test_config_files_that_are_not_what_they_should_be(text: str, reason: str, saved: Path) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(bittensor.CheckpointError, match=f"config.json.*({reason})"):
        open_checkpoint(saved)


def shards(folder: Path) -> dict[str, str]:
    """Two shards and their index; returns its map."""
    save_file({"a": torch.ones(2)}, folder / "one.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "two.safetensors")
    return {"a": "one.safetensors", "b": "two.safetensors"}


def write_index(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards(tmp_path: Path) -> None:
    write_index(tmp_path, shards(tmp_path))
    assert {name: len(tensor) for name, tensor in read_all(tmp_path).items()} == {"a": 2, "b": 3}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"a": "../one.safetensors"}, "expected the name of a file beside the index, got '../one.safetensors'"),
        ({"a": "/etc/passwd"}, "expected the name of a file beside the index"),
        ({"a": ".."}, "expected the name of a file beside the index, got '..'"),
        ({"a": ""}, "expected the name of a file beside the index, got ''"),
        ({"a": "\ud800"}, r"expected the name of a file beside the index, got '\\ud800'"),
        ({"a": 3}, "expected the name of a file beside the index, got 3"),
        ({"a": "absent.safetensors"}, "absent.safetensors: no such file"),
        ({"c": "one.safetensors"}, "one.safetensors, tensor 'c': missing"),
    ],
)
def test_shards_that_are_not_there(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_index(tmp_path, shards(tmp_path) | change)
    with pytest.raises(bittensor.CheckpointError, match=reason):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    weight_map = shards(tmp_path)
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "one.safetensors")
    write_index(tmp_path, weight_map)
    with pytest.raises(bittensor.CheckpointError, match=r"two\.safetensors, tensor 'b': also in one\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "expected model.safetensors, .* or a GGUF file in this directory"),
        (lambda path: torch.save({"a": torch.ones(1)}, path), "a pickle of PyTorch, which can run code"),
        (lambda path: path.write_bytes(b"\x80\x04" + bytes(9)), "a pickle of PyTorch"),
    ],
)
def test_paths_that_are_no_checkpoint(make: Any, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    make(path)
    with pytest.raises(bittensor.CheckpointError, match=reason):
        open_checkpoint(path)


@pytest.mark.parametrize("begin", [b"\x80\x02", b"PK"])
def test_safetensors_that_begin_as_pickles_do(begin: bytes, tmp_path: Path) -> None:
    """The first bytes are the size of the header."""
    path = tmp_path / "x.safetensors"
    text = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    length = int.from_bytes(begin, "little")
    path.write_bytes(struct.pack("<Q", length) + text.ljust(length) + b"\7")
    assert torch.equal(read_all(path)["a"], torch.tensor([7], dtype=torch.uint8))


def test_dtypes_of_less_than_a_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(header({"a": {"dtype": "F4", "shape": [4, 8], "data_offsets": [0, 16]}}, data=bytes(16)))
    assert open_checkpoint(path).entries["a"].type == "F4", "it can be listed"
    with pytest.raises(bittensor.CheckpointError, match="tensor 'a': dtype F4 is not supported"):
        read_all(path)


def test_several_gguf_files_in_a_directory(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(bittensor.CheckpointError, match=r"has 2 GGUF files; name one: a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs safetensors.*pip install 'packed-bittensor\[models\]'"):
        open_checkpoint(saved)
