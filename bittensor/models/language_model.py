"""A language model with its tokenizer: text in, text out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import open_checkpoint
from .generation import Sampling, generate, generate_together
from .llama import Llama, load_llama
from .tokenization import Tokenization, from_directory, from_gguf


@dataclass(frozen=True)
class LanguageModel:
    """A model, and what turns text into tokens and back. `load_language_model` makes one."""

    model: Llama
    tokenization: Tokenization

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        *,
        chat: bool = True,
        stop: Collection[str] = (),
    ) -> Iterator[str]:
        """Yield the answer piece by piece.

        Args:
            prompt: what the user says; with `chat` it is put into the chat template of the model, if it has one.
            max_new_tokens: where to stop at the latest.
            sampling: greedy if None.
            chat: use the chat template.
            stop: texts that end the answer, beside the tokens of the model that do; they do not belong to it.

        Raises:
            ValueError: as `bittensor.models.generate`; an empty stop text.
        """
        tokens = self.tokenization.encode(prompt, chat=chat)
        new = generate(self.model, tokens, max_new_tokens, sampling, self.tokenization.stop)
        yield from self.tokenization.stream(new, stop)

    def generate_together(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        *,
        chat: bool = True,
        stop: Collection[str] = (),
    ) -> list[str]:
        """The answers to several prompts, computed together; each is the one that `generate` gives. As `generate`."""
        tokens = [self.tokenization.encode(prompt, chat=chat) for prompt in prompts]
        answers = [self.tokenization.answer(stop) for _ in tokens]
        ended: set[int] = set()
        new = generate_together(self.model, tokens, max_new_tokens, sampling, self.tokenization.stop, ended)
        for number, token in new:
            answers[number].add(token)
            if answers[number].ended:
                ended.add(number)
        for answer in answers:
            answer.finish()
        return [answer.text for answer in answers]


def load_language_model(path: str | Path, *, activation_mode: str = "int8", progress: bool = False) -> LanguageModel:
    """Load a Llama from a GGUF file, or a directory with ``config.json``, ``tokenizer.json`` and safetensors.

    Args:
        path: as in `bittensor.checkpoints.open_checkpoint`.
        activation_mode: of the linear layers, as in `bittensor.linear`.
        progress: show a progress bar on stderr if that is a terminal.

    Raises:
        CheckpointError: a file that cannot be read, or a model or tokenizer that is not supported.
        ModuleNotFoundError: a package of the extra "models" is not installed.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.format == "gguf":
        tokenization = from_gguf(checkpoint.path, checkpoint.config)
    else:
        folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        tokenization = from_directory(folder, checkpoint.config)
    model = load_llama(checkpoint, activation_mode=activation_mode, progress=progress)
    return LanguageModel(model, tokenization)
