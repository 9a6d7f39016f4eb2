"""Text to tokens and back: tokenizers, chat templates, and where answers end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import write_tiny_gguf, write_tiny_llama

import bittensor
from bittensor.checkpoints import open_checkpoint
from bittensor.models import LanguageModel, load_language_model
from bittensor.models.tokenization import from_directory, from_gguf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> LanguageModel:
    return load_language_model(folder)


def test_template_and_streaming(tiny: LanguageModel) -> None:
    tokenization = tiny.tokenization
    assert tokenization.tokenizer.decode(tokenization.encode("hé")) == "[user]hé[answer]"
    tokens = tokenization.encode("aé€", chat=False)
    assert len(tokens) == 6, "one token a byte"
    assert list(tokenization.stream(tokens)) == ["a", "é", "€"], "a character comes when it is whole"
    assert list(tiny.generate("x", 3)) == list(tiny.generate("x", 3))


@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        ([], "abc", "abc"),
        (["c"], "abcabc", "ab"),
        (["bcx"], "abcbcxa", "abc"),
        (["aab"], "aaaab", "aa"),
        (["bcd", "c"], "abcd", "ab"),
        (["c", "bc"], "abcd", "a"),
        (["€"], "é€é", "é"),
        (["abc"], "xab", "xab"),
        (["a"], "aaa", ""),
    ],
)
def test_stop_texts(stop: list[str], text: str, expected: str, tiny: LanguageModel) -> None:
    tokens = iter(tiny.tokenization.encode(text, chat=False))
    assert "".join(tiny.tokenization.stream(tokens, stop)) == expected
    ends = [text.find(each) + len(each) for each in stop if each in text]
    if ends:
        assert len(list(tokens)) == len(text[min(ends) :].encode()), "tokens after the stop text are not asked for"


def test_what_may_become_a_stop_text_is_held_back(tiny: LanguageModel) -> None:
    answer = tiny.tokenization.answer(["---", "end"])
    a, dash, e = tiny.tokenization.encode("a-e", chat=False)
    assert [answer.add(token) for token in (a, dash, dash, a, dash, e)] == ["a", "", "", "--a", "", "-"]
    assert (answer.text, answer.ended) == ("a--a-", False)
    assert (answer.finish(), answer.finish()) == ("e", "")
    assert answer.text == "a--a-e"


@pytest.mark.parametrize("stop", ["text", [""], ["x", ""]])
def test_stop_texts_that_are_none(stop: Any, tiny: LanguageModel) -> None:
    with pytest.raises(ValueError, match="stop: expected texts of at least one character"):
        tiny.tokenization.answer(stop)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}",
        "{% for %}",
        "{{ 1 / 0 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    ],
)
def test_a_template_runs_in_a_sandbox(template: str, folder: Path, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other")
    (other / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match="chat template: "):
        load_language_model(other).tokenization.encode("x")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"token_type": 3}, "token_type: expected array, got int"),
        ({"token_type": [1, 1]}, "as many token types as tokens"),
        ({"pre": ["gpt-2"]}, "pre: expected str, got list"),
        ({"pre": "other"}, "tokenizer 'gpt2' with 'other' is not supported"),
        ({"bos_token_id": -1}, r"bos_token_id: expected a token 0\.\.255, got -1"),
        ({"eos_token_id": -5}, r"eos_token_id: expected a token 0\.\.255, got -5"),
        ({"eot_token_id": 256}, r"eot_token_id: expected a token 0\.\.255, got 256"),
        ({"eos_token_id": "end"}, r"eos_token_id: expected a token 0\.\.255, got 'end'"),
        ({"merges": ["ab"]}, "tokenizer.ggml: not enough values"),
        ({"add_bos_token": 1}, "add_bos_token: expected bool, got int"),
        ({"add_eos_token": True}, "add_eos_token: expected eos_token_id too; it is missing"),
    ],
)
def test_tokenizers_of_gguf_that_are_damaged(
    metadata: dict[str, Any], reason: str, folder: Path, tmp_path: Path
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", folder, **metadata)
    with pytest.raises(bittensor.CheckpointError, match=reason):
        load_language_model(path)


def test_tokenizer_of_gguf(folder: Path, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", folder, bos_token_id=0, eos_token_id=255, token_type=[1] * 255 + [3])
    tokenization = load_language_model(path).tokenization
    assert tokenization.encode("ab") == [255]
    assert (tokenization.stop, tokenization.special) == ({255}, {"bos_token": "!", "eos_token": "ab"})


TEMPLATE_WITH_BOS = "{{ bos_token }}{{ messages[0]['content'] }}"


def test_tokens_that_gguf_adds(folder: Path, tmp_path: Path) -> None:
    """To plain prompts; a chat template writes its own."""
    ids = {"bos_token_id": 5, "eos_token_id": 6}
    expected = {(): [255], ("bos",): [5, 255], ("eos",): [255, 6], ("bos", "eos"): [5, 255, 6]}
    for names, tokens in expected.items():
        added = {f"add_{name}_token": name in names for name in ("bos", "eos")}
        path = write_tiny_gguf(tmp_path / "tiny.gguf", folder, **ids, **added)
        checkpoint = open_checkpoint(path)
        assert from_gguf(path, checkpoint.config).encode("ab") == tokens
        templated = from_gguf(path, {**checkpoint.config, "tokenizer.chat_template": TEMPLATE_WITH_BOS})
        assert templated.encode("ab") == [5, 255]
        assert templated.encode("ab", chat=False) == tokens


def test_a_chat_template_of_gguf_that_is_not_text(folder: Path, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", folder)
    with pytest.raises(bittensor.CheckpointError, match=r"chat_template: expected str, got int"):
        from_gguf(path, {**open_checkpoint(path).config, "tokenizer.chat_template": 1})


def test_chat_templates_with_names(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer.json", tmp_path)
    named = [{"name": name, "template": f"{name} {{{{ messages[0]['content'] }}}}"} for name in ("tool_use", "default")]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    tokenization = from_directory(tmp_path, {})
    assert tokenization.tokenizer.decode(tokenization.encode("x")) == "default x"
    for wrong in (named[:1], {"default": "x"}, [{"name": "default", "template": None}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": wrong}))
        with pytest.raises(bittensor.CheckpointError, match="chat_template: expected text, or a list with one named"):
            from_directory(tmp_path, {})


@pytest.mark.parametrize(("ends", "expected"), [(7, {3, 7}), ([7, 8], {3, 7, 8}), (None, {3}), ("7", {3})])
def test_stop_tokens_of_the_generation_config(ends: Any, expected: set[int], folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer.json", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert from_directory(tmp_path, {"eos_token_id": 3}).stop == expected


@pytest.mark.parametrize("text", [None, "{}", "not json"])
def test_tokenizers_that_cannot_be_read(text: str | None, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other")
    file = other / "tokenizer.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(bittensor.CheckpointError, match=r"tokenizer\.json: (missing|not a tokenizer)"):
        load_language_model(other)


def test_a_template_that_is_not_text(tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other")
    (other / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(bittensor.CheckpointError, match=r"chat_template\.jinja: not text in UTF-8"):
        load_language_model(other)
