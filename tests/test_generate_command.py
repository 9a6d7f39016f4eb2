"""The command generate."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import write_tiny_llama
from typer.testing import CliRunner

from bittensor import models
from bittensor.cli import app

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model, as the command quantize makes it."""
    parent = tmp_path_factory.mktemp("models")
    arguments = ["quantize", str(write_tiny_llama(parent / "tiny")), str(parent / "packed"), "--group-size", "32"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return parent / "packed"


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
        (["--seed", "99999999999999999999"], "seed: expected -2**63 to 2**64 - 1, got 99999999999999999999"),
        (["--prompt", "\udcff"], r"prompt: expected text that UTF-8 holds, got '\udcff' in it"),
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
