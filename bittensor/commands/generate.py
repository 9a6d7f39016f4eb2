"""``bittensor generate``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .choices import ActivationMode
from .refusals import refusals

if TYPE_CHECKING:
    from ..models.answer_text import AnswerText


def generate(
    model: Annotated[Path, typer.Option(help="A GGUF file, or a directory with safetensors and tokenizer.json.")],
    prompt: Annotated[
        list[str],
        typer.Option(
            help="What to say to the model; - reads it from standard input. Repeatable: answered together, then shown."
        ),
    ],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after this many tokens at the latest.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token. Above: draw.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from this many likeliest tokens; 0 means all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End an answer before this text; the model may end it earlier. Repeatable."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Put the prompt into the model's chat template.")
    ] = True,
    activation_mode: Annotated[
        ActivationMode, typer.Option(help="int8: round activations, fast. float: quantized weights only.")
    ] = ActivationMode.INT8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Let a language model answer. Text goes to standard output, a last line with speeds to standard error.

    Exit status: 0, 2 if the arguments are wrong or the model cannot be read, 130 if interrupted.
    """
    try:
        with refusals():
            from ..models import Sampling, load_language_model
            from ..models import generate_together as generate_tokens

            sampling = Sampling(temperature, top_k, top_p, seed)
            texts = [sys.stdin.read() if each == "-" else each for each in prompt]
            language_model = load_language_model(model, activation_mode=activation_mode.value, progress=True)
            tokenization = language_model.tokenization
            tokens = [tokenization.encode(text, chat=chat) for text in texts]
            clock = GenerationClock(sum(map(len, tokens)))
            answers = Answers([tokenization.answer(stop or ()) for _ in texts], not as_json and len(texts) == 1)
            new = generate_tokens(
                language_model.model, tokens, max_new_tokens, sampling, tokenization.stop, answers.ended
            )
            interrupted = False
            try:
                answers.take(clock.timed(new))
            except KeyboardInterrupt:
                interrupted = True
        if as_json:
            facts = {"prompts": texts, "answers": answers.texts(), "tokens": answers.tokens}
            typer.echo(json.dumps(facts | clock.facts() | {"interrupted": interrupted}, indent=2))
        elif len(texts) > 1:
            for text in answers.texts():
                _show(text)
                typer.echo()
        else:
            typer.echo()
        typer.echo(clock.summary(), err=True)
    except KeyboardInterrupt:  # while the model is loaded
        typer.echo(err=True)
        interrupted = True
    raise typer.Exit(130 if interrupted else 0)


class Answers:
    """Several answers as their tokens come; each piece of text is shown at once if `streaming`.

    Attributes:
        tokens: of each answer, so far.
        ended: numbers of the answers that a stop text has ended.
    """

    def __init__(self, answers: Sequence[AnswerText], streaming: bool) -> None:
        self.tokens: list[list[int]] = [[] for _ in answers]
        self.ended: set[int] = set()
        self._answers, self._streaming = answers, streaming

    def take(self, new: Iterator[tuple[int, int]]) -> None:
        """Go through all of `new`; what an interrupt leaves of an answer is complete up to there."""
        try:
            for number, token in new:
                self.tokens[number].append(token)
                answer = self._answers[number]
                self._show(answer.add(token))
                if answer.ended:
                    self.ended.add(number)
        finally:
            for answer in self._answers:
                self._show(answer.finish())

    def texts(self) -> list[str]:
        """What there is of each answer."""
        return [answer.text for answer in self._answers]

    def _show(self, piece: str) -> None:
        if self._streaming and piece:
            _show(piece)


class GenerationClock:
    """Times tokens as they pass: the first one ends the prompt."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens, self.new_tokens = prompt_tokens, 0
        self.start = self.first = self.last = time.perf_counter()

    def timed(self, tokens: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """The same tokens."""
        self.start = self.first = self.last = time.perf_counter()
        for token in tokens:
            self.last = time.perf_counter()
            self.first = self.last if self.new_tokens == 0 else self.first
            self.new_tokens += 1
            yield token

    def facts(self) -> dict[str, float | int | None]:
        """What `summary` says, by name; a speed is None where nothing was timed."""
        prompt, generation = self.first - self.start, self.last - self.first
        return {
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "prompt_tokens_per_second": self.prompt_tokens / prompt if prompt > 0 else None,
            "new_tokens_per_second": (self.new_tokens - 1) / generation if generation > 0 else None,
        }

    def summary(self) -> str:
        """One line. The first new token belongs to the prompt, whose work makes it."""
        parts = [f"prompt: {self.prompt_tokens} tokens", f"generation: {self.new_tokens} tokens"]
        if self.first > self.start:
            parts[0] += f", {self.prompt_tokens / (self.first - self.start):.1f} tokens/s"
        if self.last > self.first:
            parts[1] += f", {(self.new_tokens - 1) / (self.last - self.first):.1f} tokens/s"
        return "; ".join(parts)


def _show(text: str) -> None:
    """Print a piece of an answer; to a terminal without control characters, which could change its state."""
    if sys.stdout.isatty():
        text = "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text)
    sys.stdout.write(text)
    sys.stdout.flush()
