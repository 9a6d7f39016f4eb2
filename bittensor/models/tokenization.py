"""Tokenizers and chat templates, from GGUF metadata or from the files of `transformers`."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.json_files import read_json
from ..errors import CheckpointError
from ..extras import extra
from .answer_text import AnswerText

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4
"""Values of ``tokenizer.ggml.token_type`` whose tokens are found in text before it is split."""


@dataclass(frozen=True)
class Tokenization:
    """Text to tokens and back.

    Attributes:
        tokenizer: of the package tokenizers.
        stop: tokens that end an answer.
        template: chat template in Jinja, or None.
        special: texts of special tokens, ``bos_token`` for example, for the template.
    """

    tokenizer: Tokenizer
    stop: frozenset[int]
    template: str | None
    special: Mapping[str, str]

    def encode(self, prompt: str, *, chat: bool = True) -> list[int]:
        """Tokens of a prompt; with `chat` of the chat template with the prompt in it, if there is one.

        Raises:
            ValueError: `prompt` is no text that UTF-8 holds; or as `apply_template`.
        """
        if chat and self.template is not None:
            prompt = self.apply_template([{"role": "user", "content": prompt}])
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:  # a surrogate, which stands for bytes that are not UTF-8
            raise ValueError(f"prompt: expected text that UTF-8 holds, got {prompt[error.start]!r} in it") from None
        return list(self.tokenizer.encode(prompt, add_special_tokens=not (chat and self.template is not None)).ids)

    def apply_template(self, messages: list[dict[str, str]]) -> str:
        """The text of a conversation, up to where the model is to answer.

        Raises:
            ValueError: the template fails, with whatever error; it runs in a sandbox.
        """
        with extra("models", "a chat template", ("jinja2",)):
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = raise_exception
        try:
            template = environment.from_string(self.template or "")
            return template.render(messages=messages, add_generation_prompt=True, **self.special)
        except Exception as error:  # a template is a program; one that calls itself without end is a RecursionError
            raise ValueError(f"chat template: {error or type(error).__name__}") from None

    def answer(self, stop: Collection[str] = ()) -> AnswerText:
        """An answer that has no tokens yet, and ends at one of the texts `stop`."""
        return AnswerText(self.tokenizer, stop)

    def stream(self, tokens: Iterable[int], stop: Collection[str] = ()) -> Iterator[str]:
        """Pieces of the text of an answer, as `AnswerText` gives them; after a stop text, no token is asked for."""
        answer = self.answer(stop)
        for token in tokens:
            if piece := answer.add(token):
                yield piece
            if answer.ended:
                return
        if piece := answer.finish():
            yield piece


def from_gguf(path: Path, metadata: Mapping[str, Any]) -> Tokenization:
    """The tokenizer in the metadata of a GGUF file.

    Raises:
        CheckpointError: it is missing, damaged, or of a kind that is not supported.
    """
    with extra("models", "a tokenizer", ("tokenizers",)):
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    def value(key: str, kind: type, default: Any = None) -> Any:
        found = metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(found, kind):
            raise CheckpointError(path, f"tokenizer.ggml.{key}: expected {kind.__name__}, got {type(found).__name__}")
        return found

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    splitters = {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
    }
    model, splitter = value("model", str), value("pre", str, "gpt-2")
    if model != "gpt2" or splitter not in splitters:
        raise CheckpointError(
            path, f"tokenizer {model!r} with {splitter!r} is not supported; can use 'gpt2' with {', '.join(splitters)}"
        )
    texts, merges = value("tokens", list), value("merges", list)
    kinds = value("token_type", array, array("i", [1]) * len(texts))
    if not all(isinstance(text, str) for text in (*texts, *merges)) or len(kinds) != len(texts):
        raise CheckpointError(path, "tokenizer.ggml: expected lists of strings, and as many token types as tokens")
    try:
        pairs = [(first, second) for first, second in (merge.split(" ", 1) for merge in merges)]
        tokenizer = Tokenizer(models.BPE({text: token for token, text in enumerate(texts)}, pairs))
    except Exception as error:  # the package raises plain Exception
        raise CheckpointError(path, f"tokenizer.ggml: {error}") from None
    tokenizer.pre_tokenizer = splitters[splitter]
    tokenizer.decoder = decoders.ByteLevel()
    found = [(text, kind) for text, kind in zip(texts, kinds, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text, kind in found if kind == _CONTROL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text, kind in found if kind == _USER_DEFINED])
    known: dict[str, int] = {}
    for name in ("bos", "eos", "eot"):
        if (key := f"tokenizer.ggml.{name}_token_id") in metadata:
            known[name] = number = metadata[key]
            if type(number) is not int or not 0 <= number < len(texts):
                raise CheckpointError(path, f"{key}: expected a token 0..{len(texts) - 1}, got {number!r}")
    added = [name for name in ("bos", "eos") if value(f"add_{name}_token", bool, False)]
    for name in added:
        if name not in known:
            raise CheckpointError(path, f"tokenizer.ggml.add_{name}_token: expected {name}_token_id too; it is missing")
    if added:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*(["bos"] if "bos" in added else []), "$A", *(["eos"] if "eos" in added else [])],
            special_tokens=[{"id": name, "ids": [known[name]], "tokens": [texts[known[name]]]} for name in added],
        )
    stop = {known[name] for name in ("eos", "eot") if name in known}
    if "<|endoftext|>" in texts:
        stop.add(texts.index("<|endoftext|>"))
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise CheckpointError(path, f"tokenizer.chat_template: expected str, got {type(template).__name__}")
    return Tokenization(
        tokenizer,
        frozenset(stop),
        template,
        {f"{name}_token": texts[number] for name, number in known.items() if name != "eot"},
    )


def from_directory(folder: Path, config: Mapping[str, Any]) -> Tokenization:
    """The tokenizer in ``tokenizer.json``; chat template and special tokens in ``tokenizer_config.json``.

    An answer ends at the tokens that `config`, ``generation_config.json`` or ``tokenizer_config.json`` say.

    Raises:
        CheckpointError: ``tokenizer.json`` is missing, or one of the files cannot be read.
    """
    with extra("models", "a tokenizer", ("tokenizers",)):
        from tokenizers import Tokenizer
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(path, "missing: expected the tokenizer of the model")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise CheckpointError(path, f"not a tokenizer: {error}") from None
    settings_path, template_path = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    settings = read_json(settings_path) if settings_path.is_file() else {}
    if template_path.is_file():
        template: str | None = _read_text(template_path)
    else:
        template = _default_template(settings_path, settings.get("chat_template"))
    special = {}
    for name in ("bos_token", "eos_token"):
        token = settings.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            special[name] = text
    generation_path = folder / "generation_config.json"
    stop: set[int] = set()
    for each in (config, read_json(generation_path) if generation_path.is_file() else {}):
        ends = each.get("eos_token_id")
        stop |= {end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int}
    if "eos_token" in special and (number := tokenizer.token_to_id(special["eos_token"])) is not None:
        stop.add(number)
    return Tokenization(tokenizer, frozenset(stop), template, special)


def _default_template(path: Path, template: object) -> str | None:
    """The chat template in `path`: text, or the one named "default" of a list; None if there is none."""
    if isinstance(template, str | None):
        return template
    if isinstance(template, list):
        for each in template:
            if isinstance(each, dict) and each.get("name") == "default" and isinstance(each.get("template"), str):
                return str(each["template"])
    raise CheckpointError(
        path, f"chat_template: expected text, or a list with one named 'default', got {type(template).__name__}"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise CheckpointError(path, f"not text in UTF-8: {error}") from None
