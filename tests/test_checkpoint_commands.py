"""The commands inspect and quantize."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import LAYERS, write_tiny_gguf, write_tiny_llama
from typer.testing import CliRunner

import bittensor
from bittensor.checkpoints import open_checkpoint
from bittensor.cli import app

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    options = ["--group-size", "32", "--method", "hqq", "--zero", "float", "--scales", "float16"]
    result = runner.invoke(app, ["quantize", str(folder), str(out), *options])
    assert result.exit_code == 0, result.output
    assert f"{7 * LAYERS} of " in result.output
    assert "kept model.embed_tokens.weight: matches '*embed*'" in result.output
    return out


def test_inspect_shows_a_table(packed: Path) -> None:
    result = runner.invoke(app, ["inspect", str(packed)])
    assert result.exit_code == 0, result.output
    assert "bittensor, 20 tensors" in result.output.splitlines()[0]
    line = next(line for line in result.output.splitlines() if "layers.0.mlp.up_proj.weight" in line)
    for text in ("int4 group 32 float", "96 x 64"):
        assert text in line


def test_inspect_json(packed: Path) -> None:
    result = runner.invoke(app, ["inspect", str(packed / "model.safetensors"), "--json"])
    facts = json.loads(result.output)
    assert facts["format"] == "bittensor"
    by_name = {each["name"]: each for each in facts["tensors"]}
    entry = by_name["model.layers.0.mlp.up_proj.weight"]
    nbytes = 96 * 64 // 2 + 2 * 96 * 2 * 2 + 7 * 8
    assert entry == {
        "name": "model.layers.0.mlp.up_proj.weight",
        "type": "int4 group 32 float",
        "shape": [96, 64],
        "nbytes": nbytes,
        "bits_per_weight": 8 * nbytes / (96 * 64),
    }
    assert facts["total"]["bytes"] == sum(each["nbytes"] for each in facts["tensors"])
    assert facts["total"]["tensors"] == len(facts["tensors"]) == 20


def test_inspect_escapes_names(tmp_path: Path) -> None:
    save_file({"\x1b[31mred[bold]": torch.ones(1)}, tmp_path / "x.safetensors")
    result = runner.invoke(app, ["inspect", str(tmp_path / "x.safetensors")])
    assert "\x1b" not in result.output
    assert "[bold]" in result.output, "names are no markup"


def test_inspect_folds_no_name_where_it_is_piped(tmp_path: Path) -> None:
    name = "layer." * 50 + "weight"
    save_file({name: torch.ones(1)}, tmp_path / "x.safetensors")
    result = runner.invoke(app, ["inspect", str(tmp_path / "x.safetensors")], env={"COLUMNS": "80"})
    assert name in result.output


def test_errors_escape_what_a_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    key = b"\x1b[31mred\x1b]0;title\x07"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<IIQ", 9, 4, 10**9))
    result = runner.invoke(app, ["inspect", str(path)])
    assert result.exit_code == 2
    assert r"\x1b[31mred\x1b]0;title\x07: 1000000000 of at least 4 bytes" in result.output
    assert "\x1b" not in result.output


@pytest.mark.parametrize("command", [["inspect", "PATH"], ["quantize", "PATH", "OUT"]])
@pytest.mark.parametrize("content", [None, b"", b"GGUF\3\0\0\0", b"garbage that is no file"])
def test_files_that_cannot_be_read(command: list[str], content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.file"
    if content is not None:
        path.write_bytes(content)
    arguments = [{"PATH": str(path), "OUT": str(tmp_path / "out")}.get(each, each) for each in command]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.output.startswith(f"bittensor: {path}: ")
    assert result.output.count("\n") == 1, "one line, no traceback"
    assert not (tmp_path / "out").exists()


def test_quantize_writes_what_quantize_gives(packed: Path, folder: Path) -> None:
    assert sorted(file.name for file in packed.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    floats = load_file(folder / "model.safetensors")
    checkpoint = open_checkpoint(packed)
    for name in checkpoint.entries:
        read = checkpoint.read(name)
        if isinstance(read, torch.Tensor):
            assert torch.equal(read, floats[name])
        else:
            expected = bittensor.quantize(floats[name], 4, 32, "float", "hqq", torch.float16)
            assert isinstance(read, bittensor.QuantizedWeight)
            assert read.equal(expected)


def test_quantize_to_compressed_tensors(folder: Path, tmp_path: Path) -> None:
    arguments = ["quantize", str(folder), str(tmp_path / "out"), "--bits", "8", "--group-size", "0", "--json"]
    result = runner.invoke(app, [*arguments, "--format", "compressed-tensors", "--skip", "*down_proj*"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert len(facts["quantized"]) == 6 * LAYERS
    assert facts["kept"]["model.layers.0.mlp.down_proj.weight"] == "matches '*down_proj*'"
    assert facts["bytes_after"] < facts["bytes_before"]
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.format == "compressed-tensors"
    assert checkpoint.entries["model.layers.0.mlp.up_proj.weight"].type == "int8 group 64 symmetric"
    assert checkpoint.config["model_type"] == "llama"


def test_quantize_says_what_else_stays_floats(tmp_path: Path) -> None:
    tensors = {"experts.up": torch.ones(2, 64, 32), "conv.weight": torch.ones(4, 4, 1, 32), "bias": torch.ones(64)}
    save_file(tensors | {"up.weight": torch.ones(4, 128)}, tmp_path / "float.safetensors")
    result = runner.invoke(app, ["quantize", str(tmp_path / "float.safetensors"), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "kept experts.up: expected a matrix *.weight, got [2, 64, 32]" in result.output
    assert "kept conv.weight: expected a matrix *.weight, got [4, 4, 1, 32]" in result.output
    assert "kept bias" not in result.output


def test_quantize_copies_what_belongs_to_the_model(folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(folder, tmp_path / "source")
    kept = ["LICENSE", "vocab.tiktoken", "modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"]
    kept.append("additional_chat_templates/tool_use.jinja")
    left = ["model.safetensors.index.json", "pytorch_model.bin", "onnx/model.onnx", ".git/config"]
    left += ["pytorch_model.bin.index.json", "adapter_config.json"]
    for name in (*kept, *left):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    (tmp_path / "3_Linked").mkdir()
    (tmp_path / "3_Linked" / "config.json").touch()
    (source / "3_Linked").symlink_to(tmp_path / "3_Linked")
    kept.append("3_Linked/config.json")
    parts = [{"path": path} for path in ("", "1_Pooling", "2_Dense", "3_Linked", "..", "/", "absent")]
    (source / "modules.json").write_text(json.dumps(parts))
    result = runner.invoke(app, ["quantize", str(source), str(tmp_path / "out"), "--group-size", "32"])
    assert result.exit_code == 0, result.output
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found.issuperset(kept)
    assert found.isdisjoint(left)


@pytest.mark.parametrize("name", ["LICENSE", "1_Pooling", "additional_chat_templates/x.jinja"])
def test_quantize_refuses_links_that_lead_nowhere(name: str, folder: Path, tmp_path: Path) -> None:
    """Without what they stand for, the result would be another model."""
    source = shutil.copytree(folder, tmp_path / "source")
    (source / "modules.json").write_text(json.dumps([{"path": "1_Pooling"}]))
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).symlink_to("absent")
    result = runner.invoke(app, ["quantize", str(source), str(tmp_path / "out"), "--group-size", "32"])
    assert result.exit_code == 2
    assert f"{name}: is a link to what is not there" in result.output
    assert not (tmp_path / "out").exists()


def test_quantize_with_names_of_any_kind(tmp_path: Path) -> None:
    """Of tensors, on a terminal with its progress bar, and of the output."""
    names = ["blocks[/0].weight", "\x1b[31mred.weight", "embed\x07.weight"]
    save_file({name: torch.ones(4, 32) for name in names}, tmp_path / "x.safetensors")
    target = os.fsdecode(os.fsencode(tmp_path) + b"/out\xff")
    arguments = ["quantize", str(tmp_path / "x.safetensors"), target, "--group-size", "32"]
    result = runner.invoke(app, arguments, env={"FORCE_COLOR": "1", "TERM": "xterm"})
    assert result.exit_code == 0, result.output
    assert r"out\udcff: 2 of 3 tensors quantized" in result.stdout
    assert r"kept embed\x07.weight: matches '*embed*'" in result.stdout
    assert "quantizing embed" in result.stderr
    assert "\x1b[31m" not in result.stderr
    assert "\x07" not in result.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_quantize_leaves_nothing_when_it_is_ended(
    number: signal.Signals, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the signal is ignored, as nohup has it; afterwards signals do what they did before."""

    def fail(*_: object) -> None:
        raise AssertionError("the signal had its former effect")

    monkeypatch.setattr("safetensors.torch.save_file", lambda *_, **__: os.kill(os.getpid(), number))
    arguments = ["quantize", str(folder), str(tmp_path / "out"), "--group-size", "32"]
    former = signal.signal(number, fail)
    try:
        result = runner.invoke(app, arguments)
        assert signal.getsignal(number) is fail
        assert (result.exit_code, list(tmp_path.iterdir())) == (128 + number, [])
        signal.signal(number, signal.SIG_IGN)
        monkeypatch.setattr("shutil.copymode", lambda *_: None)  # there is no file of weights
        assert runner.invoke(app, arguments).exit_code == 0
    finally:
        signal.signal(number, former)


def test_quantize_keeps_what_is_too_narrow(folder: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["quantize", str(folder), str(tmp_path / "out"), "--group-size", "72"])
    assert result.exit_code == 0, result.output
    assert "kept model.layers.0.mlp.up_proj.weight: group_size: expected at most the 64 columns" in result.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--bits", "3"], "bits: expected one of"),
        (["--group-size", "-8"], "group_size: expected"),
        (["--method", "magic"], "magic"),
        (["--group-size", "7"], "group_size: expected a multiple of 8, or None for one group a row, got 7"),
        (["--group-size", "100"], "group_size: expected a multiple of 8, or None for one group a row, got 100"),
        (["--group-size", "128"], "nothing to quantize: model.embed_tokens.weight: matches '*embed*'; model.layers.0"),
        (["--skip", "*"], "and 12 more"),
    ],
)
def test_quantize_refuses(options: list[str], reason: str, folder: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["quantize", str(folder), str(tmp_path / "out"), *options])
    assert result.exit_code == 2
    assert reason in result.output
    assert list(tmp_path.iterdir()) == []


def test_quantize_overwrites_nothing(folder: Path, packed: Path) -> None:
    before = (packed / "model.safetensors").read_bytes()
    result = runner.invoke(app, ["quantize", str(folder), str(packed)])
    assert result.exit_code == 2
    assert "exists already and is not empty" in result.output
    assert (packed / "model.safetensors").read_bytes() == before


def test_quantize_refuses_what_is_quantized(packed: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["quantize", str(packed), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "is quantized already; expected floats" in result.output


def test_quantize_refuses_gguf(folder: Path, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", folder)
    result = runner.invoke(app, ["quantize", str(path), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "tiny.gguf: is a GGUF file; expected safetensors" in result.output
    assert list(tmp_path.iterdir()) == [path]


def test_quantize_to_the_current_directory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bittensor.checkpoints.quantize_checkpoint", lambda *_, **__: pytest.fail("the work began"))
    result = runner.invoke(app, ["quantize", str(folder), "."])
    assert result.exit_code == 2
    assert ".: cannot be replaced: it is the current directory" in result.output


def test_checkpoints_and_models_load_on_demand(run_python: RunPython) -> None:
    code = "import sys, bittensor, bittensor.cli; print([n for n in sys.modules if n.startswith('bittensor.')])"
    process = run_python("-c", code)
    assert process.returncode == 0, process.stderr
    assert "bittensor.checkpoints" not in process.stdout
    assert "bittensor.models" not in process.stdout
