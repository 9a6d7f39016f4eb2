"""The commands inspect, quantize and generate."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import LAYERS, write_tiny_gguf, write_tiny_llama
from typer.testing import CliRunner

import bittensor
from bittensor import models
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
    save_file(tensors, tmp_path / "float.safetensors")
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
    for name in (*kept, *left):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    parts = [{"path": path} for path in ("", "1_Pooling", "2_Dense", "..", "/", "absent")]
    (source / "modules.json").write_text(json.dumps(parts))
    result = runner.invoke(app, ["quantize", str(source), str(tmp_path / "out"), "--bits", "8"])
    assert result.exit_code == 0, result.output
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found.issuperset(kept)
    assert found.isdisjoint(left)


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


def test_generate(packed: Path) -> None:
    arguments = ["generate", "--model", str(packed), "--prompt", "Hello", "--max-new-tokens", "8"]
    results = [runner.invoke(app, [*arguments, *more]) for more in ([], [], ["--temperature", "2", "--seed", "3"])]
    for result in results:
        assert result.exit_code == 0, result.output
        assert result.stderr.startswith("prompt: 19 tokens, ")
        assert "generation: 8 tokens, " in result.stderr
        assert result.stderr.count("tokens/s") == 2
    assert results[0].stdout == results[1].stdout != results[2].stdout
    expected = "".join(models.load_language_model(packed).generate("Hello", 8))
    assert results[0].stdout == expected + "\n"
    piped = runner.invoke(app, [each if each != "Hello" else "-" for each in arguments], input="Hello")
    assert piped.stdout == results[0].stdout


def test_generate_interrupted(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Iterator[tuple[int, int]]:
        yield from ((0, 65), (0, 66))
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "generate_together", interrupted)
    result = runner.invoke(app, ["generate", "--model", str(packed), "--prompt", "x"])
    assert result.exit_code == 130
    assert result.stdout.endswith("\n")
    assert "generation: 2 tokens" in result.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--max-new-tokens", "500"], "more than the 128"),
        (["--top-p", "0"], "top_p: expected above 0"),
        (["--temperature", "-1"], "temperature"),
        (["--stop", ""], "stop: expected texts of at least one character"),
    ],
)
def test_generate_refuses(options: list[str], reason: str, packed: Path) -> None:
    result = runner.invoke(app, ["generate", "--model", str(packed), "--prompt", "x", *options])
    assert result.exit_code == 2
    assert reason in result.output


def test_generate_shows_what_is_read(packed: Path) -> None:
    """On a terminal, and the line is erased when the model is there."""
    command = ["generate", "--model", str(packed), "--prompt", "x", "--max-new-tokens", "1"]
    result = runner.invoke(app, command, env={"FORCE_COLOR": "1", "TERM": "xterm"})
    assert result.exit_code == 0
    shown, _, _ = result.stderr.rpartition("prompt: ")
    assert "reading model.norm.weight" in shown, "the last one"
    assert shown.rstrip().endswith("\x1b[2K")
    assert "reading" not in runner.invoke(app, command).stderr


def test_generate_without_the_extra(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    result = runner.invoke(app, ["generate", "--model", str(packed), "--prompt", "x"])
    assert result.exit_code == 2
    assert "needs tokenizers, which is not installed: pip install 'packed-bittensor[models]'" in result.output


def test_checkpoints_and_models_load_on_demand(run_python: RunPython) -> None:
    code = "import sys, bittensor, bittensor.cli; print([n for n in sys.modules if n.startswith('bittensor.')])"
    process = run_python("-c", code)
    assert process.returncode == 0, process.stderr
    assert "bittensor.checkpoints" not in process.stdout
    assert "bittensor.models" not in process.stdout


def test_generate_several(packed: Path) -> None:
    prompts = ["Hello", "A longer question?", "x"]
    arguments = ["generate", "--model", str(packed), "--max-new-tokens", "6", "--temperature", "2", "--seed", "5"]
    alone = [runner.invoke(app, [*arguments, "--prompt", prompt]).stdout for prompt in prompts]
    given = [each for prompt in prompts for each in ("--prompt", prompt)]
    together = runner.invoke(app, [*arguments, *given])
    assert together.exit_code == 0, together.output
    assert together.stdout == "".join(alone)
    assert "generation: 18 tokens" in together.stderr
    facts = json.loads(runner.invoke(app, [*arguments, *given, "--json"]).stdout)
    assert facts["prompts"] == prompts
    assert "".join(f"{answer}\n" for answer in facts["answers"]) == together.stdout
    assert [len(tokens) for tokens in facts["tokens"]] == [6, 6, 6]
    assert (facts["new_tokens"], facts["interrupted"]) == (18, False)
    assert facts["new_tokens_per_second"] > 0


def test_generate_up_to_a_text(packed: Path) -> None:
    prompts = ["Hello", "A longer question?"]
    options = ["--model", str(packed), "--max-new-tokens", "12", "--temperature", "2", "--seed", "1", "--json"]
    given = [each for prompt in prompts for each in ("--prompt", prompt)]
    whole = json.loads(runner.invoke(app, ["generate", *options, *given]).stdout)
    stop = next(each for each in whole["answers"][0][1:] if each.isprintable() and each not in whole["answers"][1])
    facts = json.loads(runner.invoke(app, ["generate", *options, *given, "--stop", stop, "--stop", "never"]).stdout)
    assert facts["answers"] == [whole["answers"][0].partition(stop)[0], whole["answers"][1]]
    assert len(facts["tokens"][0]) < 12
    assert facts["tokens"][0] == whole["tokens"][0][: len(facts["tokens"][0])]
    assert facts["tokens"][1] == whole["tokens"][1]
    alone = runner.invoke(app, ["generate", *options[:-1], "--prompt", prompts[0], "--stop", stop])
    assert alone.stdout == facts["answers"][0] + "\n"
    assert f"generation: {len(facts['tokens'][0])} tokens" in alone.stderr


SLOWLY = """
import signal, sys, time
import bittensor.models.generation as generation
from bittensor.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in the background has it ignored

def forever(*arguments, **settings):
    while True:
        time.sleep(0.01)
        yield 0, token

import bittensor.models
bittensor.models.generate_together = forever
token = int(sys.argv[2])
sys.argv = ["bittensor", "generate", "--model", sys.argv[1], "--prompt", "x"]
main()
"""


def test_an_interrupt_leaves_the_terminal_as_it_was(packed: Path) -> None:
    """In a terminal of its own: settings are restored, no escape sequence is left open, the cursor is on a new line."""
    (token,) = models.load_language_model(packed).tokenization.encode("A", chat=False)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(packed), str(token)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    shown = b""
    while b"AAA" not in shown:
        assert select.select([master], [], [], 60)[0], f"nothing came; so far {shown!r}"
        shown += os.read(master, 1000)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    while select.select([master], [], [], 0.2)[0]:
        shown += os.read(master, 1000)
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)
    bar, _, shown = shown.rpartition(b"\x1b[2K")  # erases the line
    assert bar.count(b"\x1b[?25l") == bar.count(b"\x1b[?25h") == 1, "the cursor is hidden, and shown again"
    answer, _, summary = shown.partition(b"\r\n")
    assert set(answer) == {ord("A")}
    assert summary.startswith(b"prompt: ")
    assert summary.endswith(b"\r\n")
    assert b"\x1b" not in shown
    assert b"Traceback" not in shown


def test_an_interrupt_while_the_model_is_loaded(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "load_language_model", interrupted)
    result = runner.invoke(app, ["generate", "--model", str(packed), "--prompt", "x"])
    assert result.exit_code == 130
    assert result.stdout == ""
